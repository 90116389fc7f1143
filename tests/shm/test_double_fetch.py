"""Each field of the driver's is read once: one that is toggled has one value or the other.

A second read of the field would give a request that is made of both values. Every request is
checked for that; a ring which reads twice is found out within some thousand of them.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import AbstractContextManager

import pytest

from tests.shm.companion import beside
from tests.shm.guest import (
    DATA,
    HOLE,
    INDIRECT,
    NEXT,
    WRITE,
    Guest,
    descriptor,
    fail,
    places,
    write_table,
)
from vuproc.errors import RingError
from vuproc.shm.request import Request

RUN_S = 1.0
BOUND_S = 40.0
"""A busy machine gets this long to let both processes at the field by turns."""
TABLE = DATA + 0x1000

pytestmark = pytest.mark.timeout(120)


def toggled(
    guest: Guest, width: int, values: tuple[int, int], *addresses: int
) -> AbstractContextManager[None]:
    """Another process stores both values in the fields by turns."""
    fields = (places(addr, width)[0][0] for addr in addresses)
    return beside(guest, "toggler.py", width, *values, *fields)


Shape = tuple[int, tuple[int, ...], tuple[int, ...]]
"""A request as its head, and the lengths of its readable and its writable segments."""


def shapes(guest: Guest, head: int | None, wanted: int) -> Counter[Shape | str]:
    """What the ring made of the same chain, offered over and over, or why it broke.

    `head` None leaves the avail ring's entries to the other process. Goes on for RUN_S and until
    each of `wanted` outcomes was seen.
    """
    seen: Counter[Shape | str] = Counter()
    last = -1

    def handle(request: Request) -> None:
        nonlocal last
        last = request.head
        readable = tuple(part.nbytes for part in request.readable_segments)
        writable = tuple(part.nbytes for part in request.writable_segments)
        assert (sum(readable), sum(writable)) == (request.readable_total, request.writable_total)
        seen[request.head, readable, writable] += 1

    if head is not None:
        for slot in range(guest.size):
            guest.set_word(guest.avail + 4 + 2 * slot, head)
    ring = guest.ring()
    begin = time.monotonic()
    while (spent := time.monotonic() - begin) < BOUND_S:
        if spent > RUN_S and len(seen) >= wanted:
            break
        for _ in range(200):
            guest.set_avail_idx(ring.next_avail + 1)
            expected = ring.next_used
            count = seen.total()
            try:
                ring.drain(handle, fail, 1)
            except RingError as error:
                seen[error.cause] += 1
                guest.set_used_idx(0)
                ring = guest.ring()
                continue
            assert seen.total() == count + 1
            # The head that was fetched is the one that is given back.
            slot = guest.used + 4 + 8 * (expected % guest.size)
            used = int.from_bytes(guest.read(slot, 4), "little")
            assert used == last
    assert guest.intact()
    return seen


@pytest.mark.parametrize("inside", [False, True], ids=["direct", "in a table"])
def test_c23_length_is_read_once(inside: bool) -> None:
    with Guest(2) as guest:
        at = TABLE if inside else guest.desc
        guest.write(at, descriptor(DATA, 16))
        if inside:
            guest.set_desc(0, TABLE, 16, INDIRECT)
        with toggled(guest, 4, (16, 64), at + 8):
            assert set(shapes(guest, 0, 2)) == {(0, (16,), ()), (0, (64,), ())}


def test_c23_length_in_and_out_of_bounds_is_read_once() -> None:
    with Guest(2) as guest:
        guest.set_desc(0, HOLE - 64, 64)
        with toggled(guest, 4, (64, 0x10000), guest.desc + 8):
            seen = shapes(guest, 0, 2)
            assert set(seen) == {(0, (64,), ()), "buffer is not guest memory"}


def test_c23_flags_are_read_once() -> None:
    with Guest(2) as guest:
        guest.set_desc(0, DATA, 16, NEXT, 1)
        guest.set_desc(1, DATA, 32, WRITE)
        with toggled(guest, 2, (NEXT, WRITE), guest.desc + 12):
            assert set(shapes(guest, 0, 2)) == {(0, (16,), (32,)), (0, (), (16,))}


def test_c23_next_is_read_once() -> None:
    with Guest(2) as guest:
        guest.set_desc(0, DATA, 16, NEXT, 1)
        guest.set_desc(1, DATA, 32, WRITE)
        with toggled(guest, 2, (1, 0xFFFF), guest.desc + 14):
            seen = shapes(guest, 0, 2)
            assert set(seen) == {(0, (16,), (32,)), "next descriptor is outside the table"}


def test_c20_length_of_an_indirect_table_is_read_once() -> None:
    """Too long a table, and one that fits: the copy would run over its end."""
    with Guest(2) as guest:
        write_table(guest, TABLE, [(DATA, 16, NEXT, 1), (DATA, 32, WRITE, 0)])
        guest.set_desc(0, TABLE, 32, INDIRECT)
        with toggled(guest, 4, (32, 0x8000), guest.desc + 8):
            seen = shapes(guest, 0, 2)
            assert set(seen) == {(0, (16,), (32,)), "indirect table is too long"}


def test_c20_an_indirect_table_that_changes_is_copied_once() -> None:
    with Guest(2) as guest:
        write_table(guest, TABLE, [(DATA, 16, NEXT, 1), (DATA, 32, WRITE, 0)])
        guest.set_desc(0, TABLE, 32, INDIRECT)
        with toggled(guest, 2, (1, 0xFFFF), TABLE + 14):
            seen = shapes(guest, 0, 2)
            assert set(seen) == {(0, (16,), (32,)), "next descriptor is outside the table"}


def test_c01_c04_avail_entry_is_read_once() -> None:
    with Guest(2) as guest:
        guest.set_desc(0, DATA, 16)
        guest.set_desc(1, DATA, 64)
        slots = [guest.avail + 4 + 2 * slot for slot in range(2)]
        with toggled(guest, 2, (0, 1), *slots):
            assert set(shapes(guest, None, 2)) == {(0, (16,), ()), (1, (64,), ())}


def test_c01_avail_entry_in_and_out_of_the_table_is_read_once() -> None:
    with Guest(2) as guest:
        guest.set_desc(0, DATA, 16)
        slots = [guest.avail + 4 + 2 * slot for slot in range(2)]
        with toggled(guest, 2, (0, 0xFFFF), *slots):
            seen = shapes(guest, None, 2)
            assert set(seen) == {(0, (16,), ()), "avail entry is no descriptor of the table"}
