"""Frames that go nowhere: how many they are and how long they take is counted for some together."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.shm.guest import DATA, RING, Guest, fail, user
from tests.shm.packed_guest import PackedGuest
from vuproc.devices.net_native import NULL_KIND, NativePair
from vuproc.shm.counters import QueueCounters, block_bytes
from vuproc.shm.ring import Ring
from vuproc.shm.split import SplitRing

TX = 3
"""What the guests call their ring."""
SIZE, LENGTH = 8, 72
TURNS = (1, 7, 8, 8, 5, 8, 8, 8, 8, 8, 2)
"""Frames: fewer than share a look at the clock, more in all than are counted together, and some
left over.
"""

Send = Callable[[int], None]
Made = tuple[Guest, Ring, Send]


def lost(queue: int) -> None:
    raise AssertionError(f"queue {queue} has no ring")


def split(counters: QueueCounters) -> Made:
    guest = Guest(SIZE)
    ring = SplitRing(
        TX,
        SIZE,
        guest.memory,
        user(guest.desc),
        user(guest.avail),
        user(guest.used),
        0,
        features=0,
        chain_limit=0,
        counters=counters,
    )
    return guest, ring, lambda head: guest.submit(head, [(DATA + 128 * head, LENGTH, False)])


def packed(counters: QueueCounters) -> Made:
    guest = PackedGuest(SIZE)
    ring = guest.packed(counters=counters)
    return guest, ring, lambda name: guest.send(name, [(DATA + 128 * name, LENGTH, False)])


@pytest.mark.parametrize("make", [split, packed])
def test_every_frame_is_counted_once_and_has_its_time(
    make: Callable[[QueueCounters], Made],
) -> None:
    counters = QueueCounters(bytearray(block_bytes(TX + 1)), TX)
    guest, ring, send = make(counters)
    with guest:
        device = NativePair(TX - 1, NULL_KIND, lost)
        sent = 0
        for count in TURNS:
            for name in range(count):
                send(name)
            assert ring.serve_native(device, fail, 100) is False
            back = guest.back_again() if isinstance(guest, PackedGuest) else guest.reap()
            assert sorted(back) == [(name, 0) for name in range(count)]
            sent += count
            seen = counters.snapshot()
            assert seen.requests == seen.dropped == seen.heartbeat == sent
            assert seen.bytes_read == sent * LENGTH
        assert sum(seen.latency) == sent
        assert 0 < seen.latency_total_ns < 1e9 * sent
        assert guest.read(RING, 1) and guest.intact()
        ring.stop()
