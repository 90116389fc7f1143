"""Chips of a test's own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from vuproc import FilePath
from vuproc.devices.spi import Spi
from vuproc.devices.spi_chip import Chip
from vuproc.devices.spi_flash import Flash
from vuproc.devices.spi_options import SpiOptions


class Counter(Chip):
    """Counts its transfers and selections."""

    def __init__(self) -> None:
        self.transfers = self.selections = 0

    def transfer(self, tx: bytes, rx_length: int) -> bytes:
        if tx == b"raise":
            raise RuntimeError("a fault of the chip's author")
        self.transfers += 1
        return bytes((self.transfers, self.selections))

    def deselect(self) -> None:
        self.selections += 1


class Mortal(Flash):
    """A flash whose worker dies when a file says so: before a transfer is made, or after it."""

    wish: Path

    def transfer(self, tx: bytes, rx_length: int) -> bytes:
        self._die("before")
        received = super().transfer(tx, rx_length)
        self._die("after")
        return received

    def _die(self, when: str) -> None:
        if self.wish.exists() and self.wish.read_text() == when:
            self.wish.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


class RigOptions(SpiOptions, kw_only=True):
    """When to die."""

    wish: Annotated[FilePath, Meta(description="Says before or after.")] = "/nowhere"


class Rig(Spi):
    """A counter at the second select, and a mortal flash for a flash."""

    options_type = RigOptions
    options: RigOptions

    def make_chip(self, select: int) -> Chip:
        if select == 1:
            return Counter()
        chip = super().make_chip(select)
        if isinstance(chip, Flash):
            chip = Mortal(chip._file, chip._size, chip._state)
            chip.wish = Path(self.options.wish)
        return chip
