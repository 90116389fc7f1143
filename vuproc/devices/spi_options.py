"""The options of an SPI controller: which chips it has."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from vuproc.devices.spi_chip import library_is_there
from vuproc.devices.spi_flash import MAX_SIZE, MIN_SIZE
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.options import FilePath, Options, Size

WIRE, FLASH = "loopback", "flash"
MAX_CHIPS = 16
DEFAULT_SIZE = 1 << 20
"""Bytes of a flash in memory."""


class SpiOptions(Options, kw_only=True):
    """The options of `type: spi`."""

    chips: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            max_length=MAX_CHIPS,
            description="What is at each chip select, from 0 on. loopback: what is sent is "
            "received. flash: a NOR flash, at one of them. Or the path of a spidev device, such as "
            "/dev/spidev0.0.",
        ),
    ] = (WIRE,)
    flash_file: (
        Annotated[
            FilePath,
            Meta(
                description="What the flash holds: a file of 64 KiB to 16 MiB, a power of two. "
                "Without one it is in memory, and erased at each start."
            ),
        ]
        | None
    ) = None
    flash_size: (
        Annotated[
            Size,
            Meta(
                ge=MIN_SIZE,
                le=MAX_SIZE,
                description="Size of the flash in memory, a power of two; without it 1 MiB.",
            ),
        ]
        | None
    ) = None
    max_frequency: Annotated[
        int,
        Meta(
            ge=0,
            le=(1 << 32) - 1,
            description="The fastest clock that the driver may ask for, in Hz; 0: any.",
        ),
    ] = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that each chip can be had."""
        yield from super().problems()
        for chip in self.chips:
            if chip in (WIRE, FLASH):
                continue
            if not chip.startswith("/"):
                yield "chips", f"{chip!r} is neither {WIRE}, {FLASH} nor the path of a device"
            elif not _is_device(chip):
                yield "chips", f"{chip}: no device is there"
            elif not library_is_there():
                yield (
                    "chips",
                    f"{chip} needs py-spidev, which is not installed: pip install 'vuproc[spi]'",
                )
        yield from self._flash_problems()

    def _flash_problems(self) -> Iterator[tuple[str, str]]:
        if self.chips.count(FLASH) > 1:
            yield "chips", f"one {FLASH} at most"
        for name in ("flash_file", "flash_size"):
            if getattr(self, name) is not None and FLASH not in self.chips:
                yield name, f"there is no {FLASH} in chips"
        if self.flash_size is not None and self.flash_size & (self.flash_size - 1):
            yield "flash_size", f"{self.flash_size} is no power of two"
        if self.flash_file is not None:
            if self.flash_size is not None:
                yield "flash_size", "it is the size of flash_file"
            try:
                opened(self.flash_file).close()
            except FileRefused as error:
                yield error.option, error.reason


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def opened(path: str) -> Fd:
    """The file of the flash, open. Raises FileRefused, of `flash_file`."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise FileRefused("flash_file", f"{path}: no regular file")
        size = found.st_size
        if not MIN_SIZE <= size <= MAX_SIZE or size & (size - 1):
            raise FileRefused(
                "flash_file", f"{path}: {size} bytes, and no power of two from 64 KiB to 16 MiB"
            )
        return Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise FileRefused("flash_file", f"{path}: {error.strerror}") from error
