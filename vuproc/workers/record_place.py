"""Where a dead worker's ring is, from its in-flight record alone: its memory cannot be looked at.

A death in the midst of a batch's publication leaves the record behind the ring, by what the ring
alone can tell: it is served once more then, as if it had not been completed.
"""

from __future__ import annotations

import os

from vuproc.spec.inflight import (
    INFLIGHT_PACKED_DESC,
    INFLIGHT_PACKED_HEADER,
    INFLIGHT_SPLIT_DESC,
    INFLIGHT_SPLIT_HEADER,
)
from vuproc.spec.ring_layout import PACKED, RingLayout
from vuproc.vhost_user.effects import Inflight

SPLIT_LEAD_AT = 4
"""Of entry 0: how far the base was ahead of the used index when the record began (u16)."""
PACKED_LEAD_AT = 24
"""The same in the header of a packed ring's record, in slots."""
WRAP = 1 << 15


def place_in_record(layout: RingLayout, inflight: Inflight) -> tuple[int, int] | None:
    """A ring's base, and how many requests its record holds; None if no ring was ever on it."""
    size = layout.record_bytes(inflight.queue_size)
    data = os.pread(inflight.fd.fileno(), size, inflight.offset)
    if len(data) < size:
        return None
    return (_packed if layout is PACKED else _split)(data, inflight.queue_size)


def _split(data: bytes, size: int) -> tuple[int, int] | None:
    header = INFLIGHT_SPLIT_HEADER.unpack(data[: INFLIGHT_SPLIT_HEADER.size])
    entries = data[INFLIGHT_SPLIT_HEADER.size :]
    if not header["desc_num"]:
        return None
    lead = int.from_bytes(entries[SPLIT_LEAD_AT : SPLIT_LEAD_AT + 2], "little")
    marks = entries[: size * INFLIGHT_SPLIT_DESC.size : INFLIGHT_SPLIT_DESC.size]
    kept = sum(mark == 1 for mark in marks) if header["version"] else 0
    return (header["used_idx"] + lead) & 0xFFFF, kept


def _packed(data: bytes, size: int) -> tuple[int, int] | None:
    header = INFLIGHT_PACKED_HEADER.unpack(data[: INFLIGHT_PACKED_HEADER.size])
    if not header["desc_num"]:
        return None
    used = header["old_used_idx"] | (WRAP if header["old_used_wrap"] else 0)
    ahead = int.from_bytes(data[PACKED_LEAD_AT : PACKED_LEAD_AT + 2], "little")
    kept, step = 0, INFLIGHT_PACKED_DESC.size
    for at in range(INFLIGHT_PACKED_HEADER.size, INFLIGHT_PACKED_HEADER.size + size * step, step):
        entry = INFLIGHT_PACKED_DESC.unpack(data[at : at + step])
        if entry["inflight"] == 1 and header["version"]:
            kept, ahead = kept + 1, ahead + entry["num"]
    if ahead > size:
        return None
    return _advanced(used, ahead, size) | used << 16, kept


def _advanced(place: int, slots: int, size: int) -> int:
    slot, wrap = (place & ~WRAP) + slots, place & WRAP
    return slot | wrap if slot < size else (slot - size) | (wrap ^ WRAP)
