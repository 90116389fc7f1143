"""What may be at a chip select: a chip simulated in Python, a wire, or one of this host's."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

LIBRARY = "spidev"
"""The module of py-spidev."""
BUFFER = Path("/sys/module/spidev/parameters/bufsiz")
LEAST_BUFFER = 4096
"""Bytes of one transfer that spidev takes, unless its parameter says otherwise."""


def library_is_there() -> bool:
    """Whether py-spidev is installed. It is imported in a worker alone."""
    return importlib.util.find_spec(LIBRARY) is not None


@dataclass(frozen=True, slots=True)
class Settings:
    """How a transfer is to be made: what matters to hardware alone."""

    phase: bool = False
    polarity: bool = False
    select_high: bool = False
    lsb_first: bool = False
    bits_per_word: int = 8
    frequency: int = 0
    """In Hz; 0: as the driver of this host likes."""


class Chip:
    """A chip in Python. Subclass it and write `transfer`; `Spi.make_chip` puts it at a select."""

    repeatable: ClassVar[bool] = False
    """Whether a transfer may be made once more, if the worker died in it: nothing is changed by
    one. Otherwise the driver is told that it has failed."""
    simulated: ClassVar[bool] = True
    """Whether wires, clock and delays are nobody's concern."""
    settings: Settings = Settings()
    """Those of the transfer that is under way."""

    def transfer(self, tx: bytes, rx_length: int) -> bytes:
        """Make one transfer and return what is received, at most `rx_length` bytes; zeros follow.

        `tx` is what is sent. One of both may be nothing, else they are as long. Raise for one that
        fails. Several transfers may make one command: see `deselect`.
        """
        raise NotImplementedError(f"{type(self).__name__}.transfer")

    def deselect(self) -> None:
        """The chip select is given up: what comes next is a command of its own.

        Drivers seldom say so: Linux 7.2 says it never at the end of a message.
        """

    def begin(self, head: int) -> None:
        """A transfer is about to be made, with this number, which others have before and after."""

    def again(self, head: int, tx: bytes, rx_length: int) -> bytes | None:
        """The same transfer, in which the worker before us may have died: what is received, as if
        it had been made once; None: that is not known.
        """
        return None

    def close(self) -> None:
        """The worker ends."""


class Wire(Chip):
    """What is sent is received."""

    repeatable = True

    def transfer(self, tx: bytes, rx_length: int) -> bytes:
        """The same bytes; zeros if nothing is sent."""
        return tx[:rx_length]


class HostChip(Chip):
    """A chip of this host's, by spidev. It is opened when it is first needed."""

    simulated = False

    def __init__(self, path: str) -> None:
        self._path = path
        self._spi: Any = None
        self._set: Settings | None = None

    def transfer(self, tx: bytes, rx_length: int) -> bytes:
        """A selection of its own: py-spidev cannot keep the chip selected after one."""
        count = max(len(tx), rx_length)
        if count > (most := _largest()):
            raise OSError(f"{self._path}: {count} bytes at once, and spidev takes {most}")
        spi = self._opened()
        received = spi.xfer2(list(tx) if tx else [0] * count, self.settings.frequency)
        return bytes(received[:rx_length])

    def close(self) -> None:
        """Close it."""
        if self._spi is not None:
            self._spi.close()
            self._spi = None

    def _opened(self) -> Any:
        if self._spi is None:
            spi = importlib.import_module(LIBRARY).SpiDev()
            spi.open_path(self._path)
            self._spi, self._set = spi, None
        if self._set != self.settings:
            self._set = None
            wanted = self.settings
            self._spi.mode = wanted.polarity << 1 | wanted.phase
            self._spi.cshigh = wanted.select_high
            self._spi.lsbfirst = wanted.lsb_first
            self._spi.bits_per_word = wanted.bits_per_word
            self._set = wanted
        return self._spi


def _largest() -> int:
    try:
        return int(BUFFER.read_text())
    except (OSError, ValueError):
        return LEAST_BUFFER
