"""A ring in the guest's memory: of which layout, where it lies, and where it starts."""

from __future__ import annotations

from dataclasses import dataclass

from vuproc.testing.memory import Allocation, Ram
from vuproc.testing.packed_ring import PackedDriverRing, packed_layout
from vuproc.testing.ring import DriverRing
from vuproc.testing.split_ring import SplitDriverRing, split_layout

SPLIT_START = 0
"""Base of a new split ring: the first index of the available ring."""
PACKED_START = 0x8000_8000
"""Base of a new packed ring: both sides at the first slot, their wrap counters 1."""


@dataclass(frozen=True, slots=True, eq=False)
class PlacedRing:
    """A driver ring and the memory that it lies in.

    desc, avail, used: user addresses of its areas, as SET_VRING_ADDR has them; those of a packed
    ring are its descriptors, the driver's event area and the device's. base: where it started.
    """

    ring: DriverRing
    block: Allocation
    desc: int
    avail: int
    used: int
    base: int


def place_ring(
    ram: Ram, size: int, *, packed: bool, base: int | None, event_idx: bool
) -> PlacedRing:
    """A new ring of `size` descriptors, as it is if both sides have come to `base`; None: at first.

    Raises ValueError, OutOfMemory.
    """
    desc, avail, used, length = packed_layout(size) if packed else split_layout(size)
    block = ram.allocate(length, 4096)
    buffer, at, user = block.region.buffer, block.offset, block.user_addr
    ring: DriverRing
    if packed:
        start = PACKED_START if base is None else base
        ring = PackedDriverRing(
            buffer,
            size,
            desc=at + desc,
            driver_event=at + avail,
            device_event=at + used,
            base=start,
            event_idx=event_idx,
        )
    else:
        start = SPLIT_START if base is None else base
        ring = SplitDriverRing(
            buffer,
            size,
            desc=at + desc,
            avail=at + avail,
            used=at + used,
            base=start,
            event_idx=event_idx,
        )
    ring.begin()
    return PlacedRing(ring, block, user + desc, user + avail, user + used, start)
