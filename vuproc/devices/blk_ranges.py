"""The ranges that a request discards or zeroes (virtio 1.3, 5.2.6)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from vuproc.devices.blk_store import Range
from vuproc.spec.blk import DISCARD_F_UNMAP, DISCARD_SEGMENT, SECTOR_SIZE, BlkStatus

if TYPE_CHECKING:
    from vuproc.shm.request import Request

_SEGMENT = struct.Struct(DISCARD_SEGMENT.format)


class Refused(Exception):
    """The request ends with this status; nothing is wrong with the device."""

    def __init__(self, status: BlkStatus) -> None:
        super().__init__(status)
        self.status = status


def ranges_of(
    request: Request,
    max_sectors: int,
    max_segments: int,
    *,
    flags: int,
    check: Callable[[int, int], None],
) -> list[Range]:
    """The ranges of the payload, all checked first. `flags` are those that may be set, `check` is
    given offset and length in bytes of each. Raises Refused.
    """
    size = request.readable
    if size == 0 or size % _SEGMENT.size or size > max_segments * _SEGMENT.size:
        raise Refused(BlkStatus.IOERR)
    ranges = []
    for sector, count, wanted in _SEGMENT.iter_unpack(request.read(size)):
        if wanted & ~flags:
            raise Refused(BlkStatus.UNSUPP)
        if not 0 < count <= max_sectors:
            raise Refused(BlkStatus.IOERR)
        offset, length = sector * SECTOR_SIZE, count * SECTOR_SIZE
        check(offset, length)
        ranges.append((offset, length, bool(wanted & DISCARD_F_UNMAP)))
    return ranges
