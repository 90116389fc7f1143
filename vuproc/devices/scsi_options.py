"""The options of a SCSI host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from vuproc.devices.blk_image import Image
from vuproc.options import FilePath, Options, Size

MAX_UNITS = 64
"""Logical units of a device: each has a descriptor in every worker."""
MAX_REQUEST_QUEUES = 64
MAX_RAM = 1 << 44
"""Bytes of the largest disk in memory, as of `blk`."""
CD_BLOCK = 2048
"""Bytes of a block of a CD."""
_ASCII = r"^[\x20-\x7e]*$"


class UnitOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One logical unit."""

    target: Annotated[int, Meta(ge=0, le=255)] | None = None
    lun: Annotated[int, Meta(ge=0, le=16383)] = 0
    image: FilePath | None = None
    ram: Annotated[Size, Meta(ge=512, le=MAX_RAM)] | None = None
    kind: Literal["disk", "cdrom"] = "disk"
    readonly: bool = False
    removable: bool = False
    block_size: Literal[512, 1024, 2048, 4096] | None = None
    serial: Annotated[str, Meta(max_length=32, pattern=_ASCII)] = ""
    vendor: Annotated[str, Meta(max_length=8, pattern=_ASCII)] = "VUPROC"
    product: Annotated[str, Meta(max_length=16, pattern=_ASCII)] | None = None

    @property
    def is_cd(self) -> bool:
        """Whether it is a CD drive."""
        return self.kind == "cdrom"

    @property
    def fixed(self) -> bool:
        """Whether nothing of it may be changed."""
        return self.readonly or self.is_cd

    @property
    def block(self) -> int:
        """Bytes of a block."""
        return self.block_size or (CD_BLOCK if self.is_cd else 512)


class ScsiOptions(Options, kw_only=True):
    """The options of `type: scsi`."""

    superseded: ClassVar[Mapping[str, str]] = {
        "queues": "request_queues says how many queues this device has, beside two others"
    }
    live: ClassVar[frozenset[str]] = Options.live | {"unplugged"}

    luns: Annotated[
        tuple[UnitOptions, ...],
        Meta(
            min_length=1,
            max_length=MAX_UNITS,
            description="The logical units, each a mapping: image (path) or ram (size); target "
            "(0 to 255, its place in this list) and lun (0 to 16383, 0); kind (disk, or cdrom); "
            "readonly, removable (false); block_size (512, or 2048 for a cdrom); serial (at most "
            "32 ASCII characters), vendor (8), product (16).",
        ),
    ]
    unplugged: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=MAX_UNITS)], ...],
        Meta(
            description="Those of luns that the guest does not have at the moment, by their places "
            "in the list, from 0 on.",
        ),
    ] = ()
    request_queues: Annotated[
        int,
        Meta(
            ge=1,
            le=MAX_REQUEST_QUEUES,
            description="Queues for commands, a worker process each.",
        ),
    ] = 1
    cache: Annotated[
        Literal["writeback", "writethrough"],
        Meta(
            description="writeback: data is safe once the driver has synchronized the cache. "
            "writethrough: data is safe once written. The driver may switch."
        ),
    ] = "writeback"
    locking: Annotated[
        Literal["auto", "off"],
        Meta(description="As of blk: lock images as QEMU does, or leave that to others."),
    ] = "auto"

    def address(self, place: int) -> tuple[int, int]:
        """Target and LUN of the unit at that place of the list."""
        unit = self.luns[place]
        return (place if unit.target is None else unit.target), unit.lun

    def the_image(self, place: int) -> Image | None:
        """The image of the unit at that place; None for one in memory."""
        unit = self.luns[place]
        if unit.image is None:
            return None
        locking = self.locking != "off"
        return Image(unit.image, readonly=unit.fixed, direct=False, locking=locking)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that each unit has a store and an address of its own."""
        yield from super().problems()
        addresses, images = set(), set()
        for place, unit in enumerate(self.luns):
            target, lun = address = self.address(place)
            for problem in self._of_unit(place, unit):
                yield "luns", f"{target}:{lun}: {problem}"
            if address in addresses:
                yield "luns", f"two units are at target {target}, lun {lun}"
            if unit.image is not None and unit.image in images:
                yield "luns", f"{unit.image} is another unit's"
            addresses.add(address)
            images.add(unit.image)
        for place in self.unplugged:
            if place >= len(self.luns):
                yield "unplugged", f"there is no unit {place}: the first is 0"

    def _of_unit(self, place: int, unit: UnitOptions) -> Iterator[str]:
        if (unit.image is None) == (unit.ram is None):
            yield "it needs image or ram, and not both"
            return
        if unit.is_cd and (unit.image is None or unit.block != CD_BLOCK):
            yield f"a cdrom has an image, and blocks of {CD_BLOCK} bytes"
        if unit.ram is not None and unit.ram % unit.block:
            yield f"{unit.ram} bytes are not a multiple of the block size {unit.block}"
        image = self.the_image(place)
        if image is not None:
            for _, problem in image.problems(unit.block):
                yield problem
