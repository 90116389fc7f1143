"""Chains of a packed ring whose buffers lie where one of the last two did go a shorter way
(near.pxd): it leads to the same requests, and the same faults, as the long one.

Each chain is offered to a ring that has just served a buffer of the same region, and to one that
has served a buffer of another, which takes the long way.
"""

from __future__ import annotations

import os
import random
import struct
from dataclasses import dataclass

import pytest

from tests.shm.guest import BOUNDARY, DATA, HOLE, INDIRECT, NEXT, PARTS, RING, WRITE, fail
from tests.shm.packed_guest import PackedGuest
from vuproc.errors import RingError
from vuproc.shm.memory import GuestMemory
from vuproc.shm.request import Request

SIZE = 8
LIMIT = 12
"""Descriptors that a table may have."""
ELSEWHERE = 0x180000
"""In a region of its own."""
TABLES = DATA + 0x10000
FILLED = ((DATA, 0x1000), (BOUNDARY - 0x100, 0x200))
CHAINS = 400
GIB = 1 << 30

Parts = list[tuple[int, int, bool]]


@dataclass
class Offered:
    """A chain, in slots of the ring or in a table at `table`; `odd`: flags that no driver sets."""

    parts: Parts
    table: int = 0
    odd: tuple[int, int] = (0, 0)
    """Which descriptor, and what else is in its flags."""

    def send(self, guest: PackedGuest) -> None:
        """Offer it as number 1."""
        if not self.table:
            guest.send(1, self.parts)
            return
        table = bytearray()
        for i, (addr, length, writable) in enumerate(self.parts):
            flags = (WRITE if writable else 0) | (self.odd[1] if i == self.odd[0] else 0)
            table += struct.pack("<QIHH", addr, length, 0xFFFF, flags)
        guest.write(self.table, bytes(table))
        guest.send(1, [(self.table, len(table), False)], INDIRECT)


def chain(rng: random.Random) -> Offered:
    """One that is right, more often than not."""
    in_table = rng.random() < 0.5
    count = rng.randint(1, LIMIT + 1 if in_table else SIZE)
    written = rng.randint(0, count)
    parts = [
        (DATA + rng.randrange(0xF00), rng.randint(1, 0x100), i >= written) for i in range(count)
    ]
    if rng.random() < 0.6:
        # One that is different.
        i = rng.randrange(count)
        addr, length, writable = parts[i]
        edge = rng.randint(1, 0x20)
        parts[i] = rng.choice(
            (
                (addr, 0, writable),
                (HOLE, length, writable),
                (addr, 0xFFFFFFFF, writable),
                (BOUNDARY - edge, edge, writable),
                (BOUNDARY - edge, edge + 1, writable),
                (BOUNDARY, length, writable),
                (ELSEWHERE, length, writable),
                (2**64 - 8, length, writable),
                (addr, length, not writable),
            )
        )
    offered = Offered(parts)
    if in_table:
        offered.table = TABLES + rng.choice((0, 0, 16, 8, 1, 4))
        if rng.random() < 0.2:
            offered.odd = (rng.randrange(count), rng.choice((INDIRECT, NEXT)))
    return offered


def outcome(offered: Offered, warm: int) -> tuple[str, list[bytes], list[bytes]]:
    """Of a ring whose last buffer lay at `warm`: a fault, or the bytes of the pieces."""
    seen: list[tuple[list[bytes], list[bytes]]] = []

    def handle(request: Request) -> None:
        parts = request.readable_segments, request.writable_segments
        seen.append(([bytes(view) for view in parts[0]], [bytes(view) for view in parts[1]]))

    with PackedGuest(SIZE) as guest:
        for at, length in FILLED:
            guest.write(at, random.Random(at).randbytes(length))
        ring = guest.packed(chain_limit=LIMIT)
        guest.send(0, [(warm, 8, False)])
        assert ring.drain(handle, fail, 10) == 1
        guest.back_again()
        seen.clear()
        offered.send(guest)
        try:
            assert ring.drain(handle, fail, 10) == 1
        except RingError as error:
            return error.cause, [], []
        assert guest.back_again() == [(1, 0)]
        assert guest.intact()
        assert ring.next_avail == guest.next.bits()
    return "", *seen[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_is_the_same_by_either_way(seed: int) -> None:
    rng = random.Random(seed)
    served = faults = 0
    for _ in range(CHAINS // 4):
        offered = chain(rng)
        near = outcome(offered, DATA)
        assert near == outcome(offered, ELSEWHERE), offered
        served += not near[0]
        faults += bool(near[0])
        if not near[0]:
            total = sum(length for _, length, writable in offered.parts if not writable)
            assert sum(map(len, near[1])) == total
    assert served and faults


@pytest.mark.parametrize("table", [0, TABLES], ids=["slots", "a table"])
@pytest.mark.parametrize("count", [4, 5])
def test_a_chain_holds_four_gibibytes_and_no_more(table: int, count: int) -> None:
    offered = Offered([(RING, GIB, True)] * count, table)
    with PackedGuest(SIZE) as guest:
        os.ftruncate(guest.fd, PARTS[0].offset + GIB)
        guest.memory = GuestMemory.from_regions([replaced(GIB, guest.fd)])
        ring = guest.packed(chain_limit=LIMIT)
        totals: list[int] = []

        def handle(request: Request) -> None:
            totals.append(request.writable_total)

        guest.send(0, [(DATA, 8, False)])
        assert ring.drain(handle, fail, 10) == 1
        offered.send(guest)
        if count == 5:
            with pytest.raises(RingError, match=r"of more than 2\^32 bytes"):
                ring.drain(handle, fail, 10)
            return
        assert ring.drain(handle, fail, 10) == 1
        assert totals == [0, count * GIB]


def replaced(size: int, fd: int) -> tuple[int, int, int, int, int]:
    """The first region, of another size."""
    first = PARTS[0]
    return first.guest, size, first.user, first.offset, fd
