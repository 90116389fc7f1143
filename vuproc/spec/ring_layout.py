"""What tells one ring layout from another: areas, sizes, positions and records.

Session and worker choose the layout from the acknowledged features, once; nothing else asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vuproc.spec.inflight import packed_record_bytes, split_record_bytes
from vuproc.spec.virtio import (
    AVAIL_ALIGN,
    AVAIL_ENTRY,
    AVAIL_HEADER,
    DESC_ALIGN,
    DESC_SIZE,
    EVENT_WORD,
    PACKED_EVENT,
    PACKED_EVENT_ALIGN,
    QUEUE_SIZE_MAX,
    USED_ALIGN,
    USED_ENTRY,
    USED_HEADER,
    Feature,
)


class Area(NamedTuple):
    """One of a ring's three areas: `fixed` bytes and `entry` for each descriptor."""

    name: str
    align: int
    entry: int
    fixed: int

    def length(self, size: int) -> int:
        """Bytes of the area in a ring of `size` descriptors."""
        return self.fixed + self.entry * size


class RingLayout(NamedTuple):
    """How the rings of one session lie in memory.

    `desc`, `avail` and `used` are the areas at the three addresses of SET_VRING_ADDR. `base_max` is
    the largest value that SET_VRING_BASE may carry; `base_is_whole`: it has the used position, too,
    so that it says what is in flight. `record_bytes` is the distance from one queue's
    in-flight record to the next, in bytes, by the record's number of descriptors.
    """

    name: str
    desc: Area
    avail: Area
    used: Area
    base_max: int
    base_is_whole: bool
    record_bytes: Callable[[int], int]
    power_of_two: bool

    def size_problem(self, size: int) -> str | None:
        """Why no ring can have `size` descriptors, in words; None if one can."""
        if not 0 < size <= QUEUE_SIZE_MAX:
            return f"ring size {size} is not in 1 to {QUEUE_SIZE_MAX}"
        if self.power_of_two and size & (size - 1):
            return f"ring size {size} is not a power of two"
        return None

    def earlier(self, base: int, count: int) -> int:
        """The base of a ring that stopped at `base` with `count` descriptor chains in flight."""
        return base if self.base_is_whole else (base - count) & self.base_max


SPLIT = RingLayout(
    name="split",
    desc=Area("descriptor table", DESC_ALIGN, DESC_SIZE, 0),
    avail=Area("available ring", AVAIL_ALIGN, AVAIL_ENTRY, AVAIL_HEADER + EVENT_WORD),
    used=Area("used ring", USED_ALIGN, USED_ENTRY, USED_HEADER + EVENT_WORD),
    base_max=0xFFFF,
    base_is_whole=False,
    record_bytes=split_record_bytes,
    power_of_two=True,
)
"""virtio 1.3 section 2.7. A base is the next index of the available ring, free-running."""

PACKED = RingLayout(
    name="packed",
    desc=Area("descriptor ring", DESC_ALIGN, DESC_SIZE, 0),
    avail=Area("driver event area", PACKED_EVENT_ALIGN, 0, PACKED_EVENT.size),
    used=Area("device event area", PACKED_EVENT_ALIGN, 0, PACKED_EVENT.size),
    base_max=0xFFFFFFFF,
    base_is_whole=True,
    record_bytes=packed_record_bytes,
    power_of_two=False,
)
"""virtio 1.3 section 2.8. A base is two places, the next available one in its low half and the next
used one in its high half: 15 bits of a slot, and its wrap counter.
"""

LAYOUTS = (SPLIT, PACKED)


def layout_of(features: int | None) -> RingLayout:
    """The layout that these acknowledged features ask for; None: none are acknowledged yet."""
    return PACKED if features is not None and features & Feature.RING_PACKED else SPLIT


def record_room(features: int, queue_size: int) -> int:
    """Bytes that a queue's record takes at most, in whatever layout a driver may choose of these.

    One session may have several: firmware drives its disk first, and its guest then does.
    """
    layouts = LAYOUTS if features & Feature.RING_PACKED else (SPLIT,)
    return max(layout.record_bytes(queue_size) for layout in layouts)
