"""What a logical unit says of itself: inquiry data, mode pages, capacity."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from vuproc.devices.scsi_options import UnitOptions
from vuproc.spec.scsi_commands import (
    REPORT_LUNS_UNIT,
    WCE,
    DeviceKind,
    Page,
    PageControl,
    Vpd,
)

MAX_UNMAP_BYTES = 2 << 30
MAX_UNMAP_RANGES = 64
"""Of one UNMAP."""
MAX_SAME_BYTES = 32 << 20
"""Of one WRITE SAME, since some file systems must write them."""
PHYSICAL_BLOCK = 4096
"""Bytes a write should be aligned to."""

_SPC_4 = 6
_REMOVABLE, _COMMAND_QUEUES = 0x80, 0x02
_LBPME = 0x80
_THIN = 2
_UNMAPS = 0xE0
"""LBPU, LBPWS, LBPWS10: by UNMAP and by both forms of WRITE SAME."""
_NON_ROTATING = 1
_ASCII, _T10, _NAA, _BINARY = 2, 1, 3, 1
_NAA_LOCAL = 3
"""NAA that is assigned by whoever made it, the first four bits of eight bytes."""
_WRITE_PROTECT, _HAS_DPO_FUA = 0x80, 0x10
_FEW_BLOCKS, _MANY_BLOCKS = 0xFFFFFF, 0xFFFFFFFF


def _padded(text: str, size: int) -> bytes:
    return text.encode("ascii").ljust(size)


def inquiry(unit: UnitOptions) -> bytes:
    """Standard inquiry data, 36 bytes (SPC-4, 6.6.2)."""
    kind = DeviceKind.CD if unit.is_cd else DeviceKind.DISK
    removable = _REMOVABLE if unit.removable or unit.is_cd else 0
    product = unit.product or ("CD-ROM" if unit.is_cd else "DISK")
    head = bytes((kind, removable, _SPC_4, 2, 31, 0, 0, _COMMAND_QUEUES))
    return head + _padded(unit.vendor, 8) + _padded(product, 16) + _padded("1", 4)


def inquiry_of(kind: DeviceKind) -> bytes:
    """The same of what is no unit with a medium."""
    return bytes((kind, 0, _SPC_4, 2, 31, 0, 0, 0)) + b" " * 28


def vital(unit: UnitOptions, address: tuple[int, int], page: int) -> bytes | None:
    """A page of vital product data; None: there is none of this number (SPC-4, SBC-3)."""
    kind = DeviceKind.CD if unit.is_cd else DeviceKind.DISK
    match page:
        case Vpd.SUPPORTED:
            numbers = [Vpd.SUPPORTED, Vpd.IDENTIFICATION]
            numbers += [Vpd.SERIAL] if unit.serial else []
            if not unit.is_cd:
                numbers += [Vpd.BLOCK_LIMITS, Vpd.BLOCK_CHARACTERISTICS, Vpd.PROVISIONING]
            content = bytes(sorted(numbers))
        case Vpd.SERIAL if unit.serial:
            content = unit.serial.encode("ascii")
        case Vpd.IDENTIFICATION:
            content = _identification(unit, address)
        case Vpd.BLOCK_LIMITS if not unit.is_cd:
            content = _block_limits(unit)
        case Vpd.BLOCK_CHARACTERISTICS if not unit.is_cd:
            content = struct.pack(">H58x", _NON_ROTATING)
        case Vpd.PROVISIONING if not unit.is_cd:
            content = bytes((0, 0 if unit.fixed else _UNMAPS, 0 if unit.fixed else _THIN, 0))
        case _:
            return None
    return struct.pack(">BBH", kind, page, len(content)) + content


def _identification(unit: UnitOptions, address: tuple[int, int]) -> bytes:
    """By vendor and serial number; with one, by a number of 64 bits, too."""
    product = inquiry(unit)[16:32].decode("ascii")
    own = unit.serial or f"{address[0]}:{address[1]}"
    name = _padded(unit.vendor, 8) + f"{product}{own}".encode("ascii")
    content = bytes((_ASCII, _T10, 0, len(name))) + name
    if unit.serial:
        digest = bytearray(hashlib.sha256(name).digest()[:8])
        digest[0] = _NAA_LOCAL << 4 | digest[0] & 0x0F
        content += bytes((_BINARY, _NAA, 0, len(digest))) + digest
    return content


def _block_limits(unit: UnitOptions) -> bytes:
    """SBC-3, 6.6.3; a WRITE SAME of no length is refused."""
    changeable = not unit.fixed
    granularity = PHYSICAL_BLOCK // unit.block
    return struct.pack(
        ">BBHIIIIIIIQ20x",
        1,
        0,
        granularity,
        0,
        0,
        0,
        MAX_UNMAP_BYTES // unit.block * changeable,
        MAX_UNMAP_RANGES * changeable,
        granularity * changeable,
        0,
        MAX_SAME_BYTES // unit.block * changeable,
    )


def capacity_10(unit: UnitOptions, blocks: int) -> bytes:
    """The last block, or as much as fits, and the size of each (SBC-3, 5.12)."""
    return struct.pack(">II", min(max(0, blocks - 1), _MANY_BLOCKS), unit.block)


def capacity_16(unit: UnitOptions, blocks: int) -> bytes:
    """The same, with what is mapped behind it (SBC-3, 5.13)."""
    exponent = (PHYSICAL_BLOCK // unit.block).bit_length() - 1
    provisioned = 0 if unit.fixed else _LBPME
    return struct.pack(">QIBBB17x", max(0, blocks - 1), unit.block, 0, exponent, provisioned)


def luns(numbers: Sequence[int], select: int) -> bytes | None:
    """The list of a target's units; None: nothing of this kind can be told (SPC-4, 6.33)."""
    if select not in (0, 1, 2):
        return None
    entries = [] if select == 1 else [_short(number) for number in sorted(numbers)]
    if select:
        entries.append(REPORT_LUNS_UNIT)
    head = struct.pack(">II", 8 * len(entries), 0)
    return head + b"".join(struct.pack(">H6x", entry) for entry in entries)


def _short(lun: int) -> int:
    """By peripheral addressing as long as that can say it, else by the flat space (SAM-5)."""
    return lun if lun < 256 else 0x4000 | lun


# Mode pages.


def caching(unit: UnitOptions, control: PageControl, *, cached: bool) -> bytes:
    """Whether there is a write cache, which is all that can be changed (SBC-3, 6.5.5)."""
    has_cache = not unit.fixed if control is PageControl.CHANGEABLE else cached
    return bytes((Page.CACHING, 18, WCE if has_cache else 0)) + bytes(17)


def mode_pages(
    unit: UnitOptions, wanted: int, control: PageControl, *, cached: bool
) -> bytes | None:
    """The pages with this number, or all of them; None: there is no such page.

    cached: whether there is a write cache, now or by default, as `control` asks.
    """
    fixed = control is PageControl.CHANGEABLE
    pages = {Page.ERROR_RECOVERY: bytes((Page.ERROR_RECOVERY, 10)) + bytes(10)}
    if not unit.is_cd:
        pages[Page.CACHING] = caching(unit, control, cached=cached)
    # Commands may be served in any order that the driver allows.
    order = 0 if fixed else 0x10
    pages[Page.CONTROL] = bytes((Page.CONTROL, 10, 0, order)) + bytes(8)
    if unit.is_cd:
        # A tray that can be ejected and locked, and nothing to play or to write (MMC-5, 7.11).
        can = 0 if fixed else 0x29
        pages[Page.CAPABILITIES] = bytes((Page.CAPABILITIES, 18, 0, 0, 0, 0, can)) + bytes(13)
    if wanted == Page.ALL:
        return b"".join(pages.values())
    return next((page for number, page in pages.items() if number == wanted), None)


def mode_header(unit: UnitOptions, blocks: int, pages: bytes, *, long: bool, bare: bool) -> bytes:
    """Mode parameters: a header, a descriptor of blocks unless `bare`, the pages (SPC-4, 7.5)."""
    specific = (_WRITE_PROTECT if unit.fixed else 0) | (0 if unit.is_cd else _HAS_DPO_FUA)
    descriptor = b""
    if not bare and not unit.is_cd:
        counted = blocks if blocks <= _FEW_BLOCKS else _FEW_BLOCKS
        descriptor = struct.pack(">II", counted, unit.block)
    rest = descriptor + pages
    if long:
        return struct.pack(">HBB2xH", 6 + len(rest), 0, specific, len(descriptor)) + rest
    return struct.pack(">BBBB", 3 + len(rest), 0, specific, len(descriptor)) + rest
