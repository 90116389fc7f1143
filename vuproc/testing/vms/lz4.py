"""Unpacks LZ4 in the form in which Linux compresses itself; the standard library has no decoder."""

from __future__ import annotations

import struct

# LZ4 frame format, "legacy frame": this magic, then blocks, each behind its length. A block expands
# to 8 MiB at most. Linux appends the length of the whole, which is no block.
MAGIC = b"\x02\x21\x4c\x18"
BLOCK_MAX = 8 << 20
LENGTH = struct.Struct("<I")


def decompress(data: bytes) -> bytes:
    """The contents of a legacy frame. ValueError or IndexError if it is damaged."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("no LZ4 legacy frame")
    at = len(MAGIC)
    blocks = []
    while at + LENGTH.size < len(data):
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        blocks.append(_block(data[at : at + length]))
        at += length
    return b"".join(blocks)


def _block(data: bytes) -> bytes:
    """One block: again and again some literal bytes, then a copy of what came before."""
    out = bytearray()
    at = 0
    while True:
        token = data[at]
        literals, at = _count(data, at + 1, token >> 4)
        out += data[at : at + literals]
        at += literals
        # The last sequence has no copy.
        if at >= len(data):
            return bytes(out)
        distance = data[at] | data[at + 1] << 8
        copied, at = _count(data, at + 2, token & 15)
        copied += 4
        if not 0 < distance <= len(out) or len(out) + copied > BLOCK_MAX:
            raise ValueError("damaged LZ4 block")
        start = len(out) - distance
        if distance >= copied:
            out += out[start : start + copied]
        else:
            # The copy reads what it has just written: the last bytes repeat.
            out += (bytes(out[start:]) * (copied // distance + 1))[:copied]


def _count(data: bytes, at: int, start: int) -> tuple[int, int]:
    """A length whose four bits are `start`: 15 goes on in bytes, the last of them below 255."""
    if start == 15:
        while True:
            more = data[at]
            at += 1
            start += more
            if more != 255:
                break
    return start, at
