"""The packed ring: fetching, publishing, suppression, where it begins, and random traffic."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.shm.guest import DATA, F_EVENT_IDX, F_INDIRECT, HOLE, INDIRECT, NEXT, fail, take
from tests.shm.packed_guest import DESC, DISABLE, ENABLE, FRESH, PackedGuest, PackedMemory
from vuproc.errors import MemoryFault, RingError
from vuproc.shm.packed import PackedRing
from vuproc.shm.request import Request

WRITABLE = [(DATA, 8, True)]
BOTH = [(DATA, 8, False), (DATA + 64, 8, True)]


@pytest.fixture
def guest() -> Iterator[PackedGuest]:
    with PackedGuest(8) as guest:
        yield guest
        assert guest.intact()


def answered(ring: PackedRing, count: int = 1000) -> list[int]:
    """Drain, write four bytes to each request that has room; what each had to read, in bytes."""
    seen: list[int] = []

    def handle(request: Request) -> None:
        seen.append(request.readable_total)
        if request.writable:
            request.write(b"done")

    ring.drain(handle, fail, count)
    return seen


@pytest.mark.parametrize("parts", [WRITABLE, BOTH], ids=["one descriptor", "chains"])
def test_a_sleeping_driver_with_much_waiting_is_woken_less_often(
    parts: list[tuple[int, int, bool]],
) -> None:
    """As on a split ring, test_split.py, whose backlog is a difference of two indices."""
    count = 256
    with PackedGuest(count * len(parts)) as guest:
        ring = guest.packed()
        for number in range(count):
            guest.send(number, parts)
        calls = []

        def handle(request: Request) -> None:
            calls.append(guest.calls())
            end = time.monotonic_ns() + 20_000
            while time.monotonic_ns() < end:
                pass

        began = time.monotonic_ns()
        assert ring.drain(handle, fail, count) == count
        assert 2 <= sum(calls) < (time.monotonic_ns() - began) / 200_000


def test_a_chain_comes_with_its_bytes_and_goes_back_with_its_id(guest: PackedGuest) -> None:
    ring = guest.packed()
    guest.write(DATA, b"question")
    guest.send(17, BOTH)
    seen: list[bytes] = []

    def handle(request: Request) -> None:
        seen.append(request.read(8))
        request.write(b"yes")

    assert ring.drain(handle, fail, 10) == 1
    assert (seen, guest.read(DATA + 64, 3)) == ([b"question"], b"yes")
    assert guest.back_again() == [(17, 3)]
    assert (ring.next_avail, ring.next_used) == (0x8002, 0x8002)
    assert ring.stop() == 0x80028002


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8])
def test_it_goes_round_in_a_ring_of_any_size(size: int) -> None:
    with PackedGuest(size) as guest:
        ring = guest.packed()
        for number in range(5 * size):
            guest.send(number % 7, WRITABLE)
            assert answered(ring) == [0]
            assert guest.back_again() == [(number % 7, 4)]
            assert ring.next_avail == guest.next.bits()


def test_a_chain_lies_over_the_end_of_the_ring(guest: PackedGuest) -> None:
    ring = guest.packed()
    for number in range(20):
        guest.send(number, [(DATA, 1, False), (DATA, 2, False), (DATA + 8, 4, True)])
        assert answered(ring) == [3]
        assert guest.back_again() == [(number, 4)]


def test_an_indirect_table_takes_one_slot(guest: PackedGuest) -> None:
    ring = guest.packed(chain_limit=21)
    guest.send_table(3, DATA + 0x100, [(DATA, 8, False)] * 20 + [(DATA + 64, 8, True)])
    assert answered(ring) == [160]
    assert guest.back_again() == [(3, 4)]
    assert ring.next_avail == 0x8001


def test_what_is_done_out_of_order_goes_back_in_the_order_in_which_it_was_done(
    guest: PackedGuest,
) -> None:
    ring = guest.packed()
    for number in range(3):
        guest.send(number, BOTH)
    first, second, third = take(ring)
    for request in (third, first):
        request.finish()
    ring.publish()
    assert guest.back_again() == [(2, 0), (0, 0)]
    # The slots of the second are overwritten by now, and its place is not.
    guest.send(7, BOTH)
    second.finish()
    assert answered(ring) == [8]
    assert guest.back_again() == [(1, 0), (7, 4)]


def test_a_batch_is_shown_at_once(guest: PackedGuest) -> None:
    ring = guest.packed()
    for number in range(4):
        guest.send(number, BOTH)
    requests = take(ring)
    for request in requests[:3]:
        request.finish()
        assert guest.back_again() == []
    assert ring.unpublished == 3
    ring.publish()
    assert guest.back_again() == [(0, 0), (1, 0), (2, 0)]


# Suppression.


def test_calls_come_as_the_driver_wants_them(guest: PackedGuest) -> None:
    ring = guest.packed()
    for wish, expected in ((ENABLE, 1), (DISABLE, 0), (ENABLE, 1)):
        guest.want(wish)
        guest.send(1, WRITABLE)
        answered(ring)
        assert guest.calls() == expected


def test_a_call_comes_when_its_place_is_passed(guest: PackedGuest) -> None:
    ring = guest.packed(F_EVENT_IDX)
    guest.want(DESC, FRESH)
    guest.send(0, WRITABLE)
    answered(ring)
    # The first evaluation of a ring always calls.
    assert guest.calls() == 1
    assert guest.back_again() == [(0, 4)]
    for round_ in range(4):
        for number in range(8):
            place = (8 * round_ + number + 1) % 16
            expected = number % 3 == 0
            # The slot that is used next, or the one after it.
            target = (place + (0 if expected else 1)) % 16
            guest.want(DESC, target % 8 | (target < 8) << 15)
            guest.send(number, WRITABLE)
            answered(ring)
            assert (guest.calls() > 0) == expected
            guest.back_again()


def test_kicks_are_refused_while_it_looks_and_asked_for_before_it_sleeps(
    guest: PackedGuest,
) -> None:
    ring = guest.packed()
    assert guest.wish[0] == ENABLE
    ring.drain(lambda _: None, fail, 1)
    assert guest.wish[0] == DISABLE
    assert not ring.arm()
    assert guest.wish[0] == ENABLE
    guest.send(0, WRITABLE)
    assert ring.arm()


def test_with_event_idx_it_asks_for_its_place(guest: PackedGuest) -> None:
    ring = guest.packed(F_EVENT_IDX)
    guest.send(0, BOTH)
    answered(ring)
    assert not ring.arm()
    assert guest.wish == (DESC, 0x8002)


# Where it begins.


@pytest.mark.parametrize(
    ("base", "place"),
    [(0x80038003, 0x8003), (0x8000, 0x8000), (0x8003, 0x8003), (3, 3), (0x00030003, 3)],
)
def test_a_base_is_one_place_or_two(guest: PackedGuest, base: int, place: int) -> None:
    ring = guest.packed(base=base)
    assert (ring.next_avail, ring.next_used) == (place, place)


def test_base_0_is_a_fresh_ring_if_nobody_was_there(guest: PackedGuest) -> None:
    assert guest.packed(base=0).next_avail == FRESH
    guest.send(0, WRITABLE)
    ring = guest.packed(base=0)
    assert (ring.next_avail, answered(ring)) == (FRESH, [0])


def test_base_0_is_the_second_round_if_the_first_is_over(guest: PackedGuest) -> None:
    ring = guest.packed()
    for number in range(8):
        guest.send(number, WRITABLE)
        answered(ring)
        guest.back_again()
    assert ring.stop() == 0
    ring = guest.packed(base=0)
    assert ring.next_avail == 0
    guest.send(5, WRITABLE)
    assert answered(ring) == [0]
    assert guest.back_again() == [(5, 4)]
    # And with its first request there already.
    guest.send(6, WRITABLE)
    assert guest.packed(base=0x00010001).pending


def test_base_0_behind_a_chain_over_the_end_is_told_by_the_record(guest: PackedGuest) -> None:
    with PackedMemory(8) as memory:
        guest.next.slot = guest.back.slot = 7
        guest.next.wrap = guest.back.wrap = 0
        ring = guest.packed(base=0x00070007, record=memory.map(), fresh=True)
        guest.send(1, BOTH)
        answered(ring)
        for number in range(7):
            guest.send(number, WRITABLE)
            answered(ring)
            guest.back_again()
        assert ring.stop() == 0
        # Slot 0 has the second descriptor of the chain, available in a round that is over.
        ring = guest.packed(base=0, record=memory.map())
        assert (ring.next_avail, ring.pending) == (0, False)
        assert (guest.packed(base=0).next_avail) == FRESH


@pytest.mark.parametrize("base", [0x80088008, 0x80028001, 0x80008009])
def test_a_base_outside_the_ring_is_refused(guest: PackedGuest, base: int) -> None:
    with pytest.raises(RingError, match="is no place of the ring"):
        guest.packed(base=base)


def test_what_was_lost_before_us_stays_lost(guest: PackedGuest) -> None:
    guest.next.step(3, 8)
    guest.send(4, WRITABLE)
    ring = guest.packed(base=0x80008003)
    assert answered(ring) == [0]
    assert (ring.next_avail, ring.next_used) == (0x8004, 0x8001)


# What breaks it.


@pytest.mark.parametrize(
    ("parts", "extra", "cause"),
    [
        ([(HOLE, 8, True)], 0, "buffer is not guest memory"),
        ([(DATA, 8, True), (DATA, 8, False)], 0, "device-readable descriptor after"),
        ([(DATA, 16, False)], INDIRECT | NEXT, "indirect descriptor with a next one"),
        ([(DATA, 24, False)], INDIRECT, "no whole number of descriptors"),
        ([(DATA, 0, False)], INDIRECT, "no whole number of descriptors"),
        ([(HOLE, 16, False)], INDIRECT, "indirect table is not guest memory"),
        ([(DATA, 16 * 9, False)], INDIRECT, "indirect table is too long"),
        ([(DATA, 0xFFFFFFFF, False)] * 3, 0, "buffer is not guest memory"),
    ],
)
def test_a_chain_that_must_not_be_breaks_the_ring(
    guest: PackedGuest, parts: list[tuple[int, int, bool]], extra: int, cause: str
) -> None:
    ring = guest.packed()
    guest.send(0, parts, extra)
    before = guest.bytes[:]
    with pytest.raises(RingError, match=cause) as caught:
        answered(ring)
    assert (caught.value.queue, caught.value.index) == (3, 0x8000)
    after = bytearray(guest.bytes[:])
    # Nothing but our wish for no kicks was written.
    at = before.find(b"") + 0x1000 + 16 * 8 + 4
    after[at : at + 4] = before[at : at + 4]
    assert bytes(after) == before
    assert ring.broken is not None and ring.in_flight == 0


def test_a_table_in_a_table_breaks_the_ring(guest: PackedGuest) -> None:
    ring = guest.packed()
    guest.write(DATA, (DATA).to_bytes(8, "little") + (16).to_bytes(4, "little") + b"\0\0\4\0")
    guest.send(0, [(DATA, 16, False)], INDIRECT)
    with pytest.raises(RingError, match="in an indirect table"):
        answered(ring)


def test_more_than_the_ring_holds_breaks_it(guest: PackedGuest) -> None:
    ring = guest.packed()
    for number in range(4):
        guest.send(number, BOTH)
    held = take(ring)
    assert len(held) == 4
    # A driver that goes on over slots which it has not got back.
    guest.send(9, WRITABLE)
    with pytest.raises(RingError, match="more descriptors available than the ring has free"):
        answered(ring)


def test_a_chain_without_an_end_breaks_it(guest: PackedGuest) -> None:
    ring = guest.packed()
    guest.send(0, [(DATA, 8, False)] * 8, NEXT)
    with pytest.raises(RingError, match="more descriptors available than the ring has free"):
        answered(ring)


def test_areas_outside_memory_and_off_their_alignment_are_refused(guest: PackedGuest) -> None:
    desc, driver, device = guest.desc, guest.driver, guest.device
    for name, value in (("desc", desc + 8), ("driver", driver + 2), ("device", device + 2)):
        setattr(guest, name, value)
        with pytest.raises(RingError, match="is not aligned"):
            guest.packed()
        guest.desc, guest.driver, guest.device = desc, driver, device
    guest.desc = 0x180000 + 4096 - 64
    with pytest.raises(MemoryFault, match="descriptors"):
        guest.packed()


# Random traffic, out of order, with deaths at rest.


@pytest.mark.parametrize("seed", range(20))
def test_every_request_comes_back_once_whatever_the_order(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice((1, 2, 3, 4, 7, 8, 13, 64))
    features = rng.choice((0, F_INDIRECT, F_EVENT_IDX, F_EVENT_IDX | F_INDIRECT))
    start = rng.randrange(size) | rng.choice((0, 0x8000))
    base = start | start << 16
    if base == 0:
        start, base = FRESH, FRESH | FRESH << 16
    with PackedGuest(size, start) as guest, PackedMemory(size) as memory:
        ring = guest.packed(features, base=base, chain_limit=8, record=memory.map(), fresh=True)
        held: list[Request] = []
        ids = list(range(size))
        out: set[int] = set()
        sent = done = 0

        def handle(request: Request) -> None:
            if rng.random() < 0.5:
                request.defer()
                held.append(request)

        while done < 300:
            free = size - sum(guest.lengths.values())
            while free and rng.random() < 0.7 and sent < 300:
                count = rng.randint(1, min(3, free))
                number = ids.pop(rng.randrange(len(ids)))
                if features & F_INDIRECT and rng.random() < 0.5:
                    guest.send_table(number, DATA + 0x100 * number, BOTH)
                    count = 1
                else:
                    guest.send(number, [(DATA, 8, False)] * (count - 1) + WRITABLE)
                out.add(number)
                free -= count
                sent += 1
            if rng.random() < 0.1:
                # Its worker is gone, with what it held.
                held = []
                ring.stop(keep=True)
                ring = guest.packed(features, chain_limit=8, record=memory.map())
                assert len(ring.recovered) + len(guest.lengths) >= len(out)
            ring.drain(handle, fail, rng.randint(1, 10))
            rng.shuffle(held)
            for _ in range(rng.randint(0, len(held))):
                held.pop().finish()
            ring.publish()
            if not held or sent == 300:
                while held:
                    held.pop().finish()
                ring.publish()
            for number, _ in guest.back_again():
                out.remove(number)
                ids.append(number)
                done += 1
        ring.drain(handle, fail, 100)
        assert not out and ring.outstanding == len(held) == 0
        assert memory.live == []
