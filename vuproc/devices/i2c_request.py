"""One request of an I2C driver: a segment of a transaction, and its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vuproc.spec.i2c import OUT_HEADER, I2cFlag, I2cStatus, address_of

if TYPE_CHECKING:
    from vuproc.shm.request import Request

KNOWN_FLAGS = int(I2cFlag.FAIL_NEXT | I2cFlag.M_RD)
MOST_BYTES = 8192
"""Bytes of one segment: as many as Linux passes to an adapter (i2c-dev.c)."""


class Segment(NamedTuple):
    """What a request asks for: to write `data`, or to read `wanted` bytes (`reads`)."""

    address: int
    ten_bit: bool
    reads: bool
    data: bytes
    wanted: int


def parse(request: Request) -> tuple[Segment | None, bool]:
    """What is asked for, None if that makes no sense; and whether a failure is the next one's, too.

    The readable bytes are copied once, wherever the cursor is.
    """
    if not OUT_HEADER.size <= request.readable_total <= OUT_HEADER.size + MOST_BYTES:
        return None, False
    copied = b"".join(request.readable_segments)
    header, data = OUT_HEADER.unpack(copied), copied[OUT_HEADER.size :]
    flags, found = header["flags"], address_of(header["addr"])
    grouped = bool(flags & I2cFlag.FAIL_NEXT)
    count = request.writable_total - 1  # the status comes last
    reads = bool(flags & I2cFlag.M_RD)
    if found is None or flags & ~KNOWN_FLAGS:
        return None, grouped
    if not 0 <= count <= MOST_BYTES or (data if reads else count):
        return None, grouped
    return Segment(*found, reads, data, count), grouped


def answer(request: Request, content: bytes | None) -> None:
    """Write what was read, and the status; None: it has failed."""
    if content:
        request.write(content)
    if request.writable_total:
        request.put(-1, bytes([I2cStatus.ERR if content is None else I2cStatus.OK]))
