"""What a device file may say of an I2C bus."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from vuproc.devices.i2c_chips import Chip, Eeprom, Lm75, Registers, degrees
from vuproc.options import FilePath, Options, Size

FIRST_ADDRESS, LAST_ADDRESS = 0x08, 0x77
"""Addresses of 7 bits that are not reserved (the I2C-bus specification)."""
MOST_CHIP_BYTES = 1 << 16
"""Of a chip in a device file: two bytes of address say no more."""


class ChipOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One simulated chip of the device file."""

    address: Annotated[int, Meta(ge=FIRST_ADDRESS, le=LAST_ADDRESS, description="Its address.")]
    kind: Annotated[Literal["eeprom", "lm75", "registers"], Meta(description="What it is.")]
    size: Annotated[
        Size, Meta(ge=1, le=MOST_CHIP_BYTES, description="Bytes of an eeprom or registers.")
    ] = 256
    content: Annotated[
        str, Meta(description="What an eeprom or registers begin with, in hexadecimal.")
    ] = ""
    file: Annotated[FilePath, Meta(description="Where an eeprom or registers are kept.")] | None = (
        None
    )
    temperature: Annotated[float, Meta(description="Of an lm75, in degrees Celsius.")] = 25.0

    def problem(self) -> str | None:
        """What is wrong with it."""
        try:
            content = bytes.fromhex(self.content)
        except ValueError:
            return "content is not in hexadecimal"
        if len(content) > self.size:
            return f"content has {len(content)} bytes, and the chip {self.size}"
        try:
            degrees(self.temperature)
        except ValueError as error:
            return str(error)
        return None

    def make(self) -> Chip:
        """The chip."""
        if self.kind == "lm75":
            return Lm75(self.temperature)
        kind = Eeprom if self.kind == "eeprom" else Registers
        return kind(self.size, bytes.fromhex(self.content), self.file)


class I2cOptions(Options, kw_only=True):
    """The options of `type: i2c`."""

    json_schema: ClassVar[Mapping[str, Any]] = {
        "allOf": [{"not": {"required": ["bus", other]}} for other in ("chips", "control")]
    }

    bus: (
        Annotated[
            FilePath, Meta(description="A bus of the host: /dev/i2c-1. Needs the package smbus2.")
        ]
        | None
    ) = None
    chips: Annotated[
        tuple[ChipOptions, ...],
        Meta(
            description="Simulated chips: a list of mappings with `address`, `kind` (eeprom, lm75 "
            "or registers), and `size`, `content`, `file` or `temperature`."
        ),
    ] = ()
    control: (
        Annotated[
            FilePath,
            Meta(description="A socket by which scripts read and set what simulated chips have."),
        ]
        | None
    ) = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that there is one bus, and each address once."""
        yield from super().problems()
        if self.bus is not None:
            if self.chips or self.control is not None:
                yield "bus", "a bus of the host has its own chips: leave out chips and control"
            if importlib.util.find_spec("smbus2") is None:
                yield "bus", "needs the Python package smbus2: pip install 'vuproc[i2c]'"
        seen = set()
        for number, chip in enumerate(self.chips):
            if chip.address in seen:
                yield "chips", f"chips[{number}]: {chip.address:#x} is taken already"
            seen.add(chip.address)
            problem = chip.problem()
            if problem is not None:
                yield "chips", f"chips[{number}]: {problem}"
