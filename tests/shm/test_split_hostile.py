"""The split ring with a hostile driver: what it may write and what becomes of the ring then."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.shm.guest import (
    BOUNDARY,
    DATA,
    END,
    F_EVENT_IDX,
    F_INDIRECT,
    HOLE,
    INDIRECT,
    NEXT,
    RING,
    WRITE,
    Guest,
    expect_broken,
    fail,
    take,
    write_table,
)
from vuproc.errors import RingError
from vuproc.shm.request import Request


@pytest.mark.parametrize("entry", [8, 9, 0x7FFF, 0xFFFF])
def test_c01_avail_entry_outside_the_table_breaks_ring(guest: Guest, entry: int) -> None:
    guest.offer(entry)
    expect_broken(guest, guest.ring(), "no descriptor of the table")
    assert guest.reap() == []


@pytest.mark.parametrize("base", [0, 7, 65530])
@pytest.mark.parametrize("jump", [9, 100, 32768, 65535])
def test_c02_c03_avail_index_that_jumps_or_goes_back_breaks_ring(base: int, jump: int) -> None:
    with Guest(8, base=base) as guest:
        ring = guest.ring()
        guest.set_avail_idx(base + jump)
        expect_broken(guest, ring, "further on than the ring is long", base)


def test_c02_arming_finds_the_jump_too(guest: Guest) -> None:
    for features in (0, F_EVENT_IDX):
        ring = guest.ring(features)
        guest.set_avail_idx(9)
        with pytest.raises(RingError, match="further on"):
            ring.arm()
        assert ring.broken is not None


def test_c04_head_that_is_in_flight_breaks_ring(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(4, [(DATA, 8, True)])
    (request,) = take(ring)
    guest.offer(4)
    with pytest.raises(RingError, match="in flight already") as caught:
        take(ring)
    assert caught.value.index == 1
    assert request.finished


def test_c04_a_head_is_free_again_only_once_it_is_in_the_used_ring(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(4, [(DATA, 8, True)])
    for _ in range(20):
        (request,) = take(ring)
        request.finish()
        ring.publish()
        assert guest.reap() == [(4, 0)]
        guest.offer(4)
    (request,) = take(ring)
    request.finish()
    guest.offer(4)
    with pytest.raises(RingError, match="in flight already"):
        take(ring)
    # What was complete has been published before.
    assert guest.reap() == [(4, 0)]


def test_c05_a_ring_full_of_one_head_breaks_ring(guest: Guest) -> None:
    ring = guest.ring()
    guest.chain(2, [(DATA, 8, True)])
    guest.offer(*[2] * 8)
    seen: list[int] = []
    with pytest.raises(RingError, match="in flight already"):
        ring.drain(lambda request: seen.append(request.head), fail, 100)
    assert seen == [2]
    assert guest.reap() == [(2, 0)]


@pytest.mark.parametrize("entry", [8, 0xFFFF])
def test_c06_next_outside_the_table_breaks_ring(guest: Guest, entry: int) -> None:
    guest.set_desc(0, DATA, 8, NEXT, entry)
    guest.offer(0)
    expect_broken(guest, guest.ring(), "next descriptor is outside the table")


@pytest.mark.parametrize("length", [0, 8])
@pytest.mark.parametrize("loop", [(0,), (0, 1), tuple(range(8))])
def test_c07_chain_loop_breaks_ring(guest: Guest, loop: tuple[int, ...], length: int) -> None:
    for i, index in enumerate(loop):
        guest.set_desc(index, DATA, length, NEXT, loop[(i + 1) % len(loop)])
    guest.offer(0)
    expect_broken(guest, guest.ring(), "chain loops")


def test_c08_chain_longer_than_allowed_breaks_ring(guest: Guest) -> None:
    """A direct chain as long as the ring is the longest; direct and indirect parts add up."""
    guest.chain(0, [(DATA, 1, False)] * 8)
    guest.offer(0)
    (request,) = take(guest.ring())
    assert request.readable == 8
    write_table(guest, DATA, [(DATA, 1, NEXT, i + 1) for i in range(7)] + [(DATA, 1, 0, 0)])
    guest.set_desc(1, DATA, 16 * 8, INDIRECT)
    expect_broken(guest, guest.ring(), "chain is too long")
    (request,) = take(guest.ring(chain_limit=9))
    assert request.readable == 9


def test_c09_zero_length_descriptor_is_an_empty_segment(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(0, [(DATA, 0, False), (HOLE, 0, False), (0, 0, True), (DATA, 2, True)])
    (request,) = take(ring)
    assert (request.readable, request.writable) == (0, 2)
    assert [part.nbytes for part in request.readable_segments] == [0, 0]
    assert [part.nbytes for part in request.writable_segments] == [0, 2]
    assert request.read() == b""
    assert request.write(b"abc") == 2


def test_c10_a_length_beyond_memory_breaks_ring(guest: Guest) -> None:
    guest.submit(0, [(DATA, 0xFFFFFFFF, False)])
    expect_broken(guest, guest.ring(), "buffer is not guest memory")


def test_c10_lengths_that_add_up_to_more_than_2_to_32_break_ring() -> None:
    """Of 4 GiB in all, each descriptor showing the same quarter of a MiB."""
    count = (1 << 32) // 0x40000
    entries = [(RING, 0x40000, NEXT | WRITE, i + 1) for i in range(count)]
    entries[-1] = (RING, 0x40000, WRITE, 0)
    one_more = [(RING, 1, NEXT, 1)] + [(*entry[:3], entry[3] + 1) for entry in entries]
    with Guest(1) as guest:
        write_table(guest, DATA, entries)
        guest.set_desc(0, DATA, 16 * count, INDIRECT)
        guest.offer(0)
        ring = guest.ring(chain_limit=count + 1)
        (request,) = take(ring)
        assert request.writable == 1 << 32
        request.finish(1 << 32)
        ring.publish()
        # The most that a used length can say.
        assert guest.reap() == [(0, 0xFFFFFFFF)]
        # Writable bytes and readable ones add up.
        write_table(guest, DATA - 16, one_more)
        guest.set_desc(0, DATA - 16, 16 * (count + 1), INDIRECT)
        guest.offer(0)
        expect_broken(guest, ring, "more than 2\\^32 bytes", 1)


def test_c11_unmapped_buffer_breaks_ring(guest: Guest) -> None:
    for addr, length in ((HOLE, 1), (HOLE - 1, 2), (0, 1), (END, 1), ((1 << 64) - 8, 16)):
        with Guest() as other:
            other.submit(0, [(DATA, 1, False), (addr, length, True)])
            expect_broken(other, other.ring(), "buffer is not guest memory")


def test_c12_readable_after_writable_breaks_ring(guest: Guest) -> None:
    guest.submit(0, [(DATA, 1, False), (DATA, 0, True), (DATA, 1, False)])
    expect_broken(guest, guest.ring(), "readable descriptor after a device-writable one")


@pytest.mark.parametrize("writable", [False, True])
def test_c13_one_sided_chains_are_given_to_the_device(guest: Guest, writable: bool) -> None:
    ring = guest.ring()
    guest.submit(0, [(DATA, 5, writable), (DATA, 5, writable)])
    (request,) = take(ring)
    assert (request.readable, request.writable) == ((0, 10) if writable else (10, 0))
    assert request.write(b"status") == (6 if writable else 0)
    request.finish()
    ring.publish()
    assert guest.reap() == [(0, 6 if writable else 0)]


def test_c14_a_header_over_many_descriptors_is_gathered(guest: Guest) -> None:
    guest.write(DATA, bytes(range(7)))
    ring = guest.ring()
    guest.submit(0, [(DATA + i, 1, False) for i in range(7)] + [(DATA, 1, True)])
    (request,) = take(ring)
    assert request.read(16) == bytes(range(7))


@pytest.mark.parametrize("length", [0, 1, 8, 15, 17, 24, 0xFFFFFFFF])
def test_c15_indirect_table_of_no_whole_length_breaks_ring(guest: Guest, length: int) -> None:
    guest.set_desc(0, DATA, length, INDIRECT)
    guest.offer(0)
    expect_broken(guest, guest.ring(), "no whole number of descriptors")


@pytest.mark.parametrize("entries", [9, 65536, 0xFFFFFFF])
def test_c16_indirect_table_that_is_too_long_breaks_ring(guest: Guest, entries: int) -> None:
    guest.set_desc(0, DATA, 16 * entries, INDIRECT)
    guest.offer(0)
    expect_broken(guest, guest.ring(), "indirect table is too long")


@pytest.mark.parametrize("flags", [INDIRECT, INDIRECT | NEXT])
def test_c17_indirect_inside_indirect_breaks_ring(guest: Guest, flags: int) -> None:
    write_table(guest, DATA, [(DATA, 16, NEXT, 1), (DATA, 16, flags, 0)])
    guest.set_desc(0, DATA, 32, INDIRECT)
    guest.offer(0)
    expect_broken(guest, guest.ring(), "indirect descriptor in an indirect table")


def test_c18_indirect_with_next_breaks_ring(guest: Guest) -> None:
    write_table(guest, DATA, [(DATA, 16, 0, 0)])
    guest.set_desc(0, DATA, 16, INDIRECT | NEXT, 1)
    guest.offer(0)
    expect_broken(guest, guest.ring(), "indirect descriptor with a next one")


def test_c19_indirect_without_the_feature_breaks_ring(guest: Guest) -> None:
    write_table(guest, DATA, [(DATA, 16, 0, 0)])
    guest.set_desc(0, DATA, 16, INDIRECT)
    guest.offer(0)
    expect_broken(guest, guest.ring(features=F_EVENT_IDX), "without the feature")


@pytest.mark.parametrize("addr", [HOLE, HOLE - 16, 0, (1 << 64) - 16])
def test_c20_indirect_table_outside_memory_breaks_ring(guest: Guest, addr: int) -> None:
    guest.set_desc(0, addr, 32, INDIRECT)
    guest.offer(0)
    expect_broken(guest, guest.ring(), "indirect table is not guest memory")


def test_c20_indirect_table_over_two_regions_at_any_address_is_read(guest: Guest) -> None:
    for at in (BOUNDARY - 16, BOUNDARY - 9, BOUNDARY - 1, DATA + 3):
        write_table(guest, at, [(DATA, 5, NEXT, 1), (DATA, 6, WRITE, 0)])
        ring = guest.ring()
        guest.set_desc(0, at, 32, INDIRECT)
        guest.offer(0)
        (request,) = take(ring)
        assert (request.readable, request.writable) == (5, 6)
        request.finish()
        ring.publish()


@pytest.mark.parametrize("loop", [[0], [1, 0], [1, 2, 0]])
def test_c21_indirect_table_loop_breaks_ring(guest: Guest, loop: list[int]) -> None:
    write_table(guest, DATA, [(DATA, 4, NEXT, next_) for next_ in loop])
    guest.set_desc(0, DATA, 16 * len(loop), INDIRECT)
    guest.offer(0)
    expect_broken(guest, guest.ring(), "chain loops")


def test_c22_write_on_an_indirect_descriptor_and_unknown_flags_are_ignored(guest: Guest) -> None:
    write_table(guest, DATA, [(DATA, 4, NEXT | 0xFFF8, 1), (DATA, 5, WRITE | 0xFFF8, 7)])
    guest.set_desc(0, DATA, 32, INDIRECT | WRITE | 0xFFF8)
    guest.offer(0)
    (request,) = take(guest.ring())
    assert (request.readable, request.writable) == (4, 5)


def test_c23_descriptors_changed_in_flight_change_nothing(guest: Guest) -> None:
    ring = guest.ring()
    guest.write(DATA, b"abcd")
    guest.submit(0, [(DATA, 4, False), (DATA + 64, 4, True)])
    (request,) = take(ring)
    guest.chain(0, [(HOLE, 0xFFFFFFFF, False), (HOLE, 0xFFFFFFFF, True)])
    assert request.read() == b"abcd"
    assert request.write(b"efghi") == 4
    request.finish()
    ring.publish()
    assert guest.reap() == [(0, 4)] and guest.read(DATA + 64, 4) == b"efgh"


def test_c24_used_fields_written_by_the_guest_are_not_believed(guest: Guest) -> None:
    ring = guest.ring()
    for head in range(3):
        guest.set_used_idx(40000)
        guest.set_word(guest.used, 0xFFFF)
        guest.submit(head, [(DATA, 4, True)])
        ring.drain(lambda _: None, fail, 10)
        assert guest.used_idx == head + 1
    assert guest.reap() == [(0, 0), (1, 0), (2, 0)]


def test_c30_a_full_ring_through_many_wraps_of_the_index() -> None:
    with Guest(8, base=65500) as guest:
        ring = guest.ring(F_EVENT_IDX)
        for head in range(8):
            guest.chain(head, [(DATA + head, 1, True)])
        done = 0
        while done < 3 * 65536:
            guest.offer(*range(8))
            assert ring.drain(lambda _: None, fail, 100) == 8
            # All in one slice: this loop runs 25,000 times.
            assert guest.used_idx == guest.offered
            done += 8
        guest.taken = (guest.offered - 8) & 0xFFFF
        assert guest.reap() == [(head, 0) for head in range(8)]
        assert ring.next_avail == guest.offered == (65500 + done) & 0xFFFF


@pytest.mark.parametrize("features", [F_INDIRECT, F_INDIRECT | F_EVENT_IDX])
def test_c30_more_requests_than_an_index_counts_finished_in_any_order(features: int) -> None:
    choose = random.Random(30)
    with Guest(16, base=65000) as guest:
        ring = guest.ring(features)
        for head in range(16):
            guest.chain(head, [(DATA + head, 1, True)])
        free = list(range(16))
        held: list[Request] = []
        submitted = completed = 0
        while completed < 70_000:
            choose.shuffle(free)
            count = choose.randint(0, len(free))
            guest.offer(*free[:count])
            del free[:count]
            submitted += count
            held += take(ring, choose.randint(1, 16))
            choose.shuffle(held)
            for _ in range(choose.randint(0, len(held))):
                request = held.pop()
                request.finish(request.head & 1)
            ring.publish()
            for head, length in guest.reap():
                assert length == head & 1 and head not in free
                free.append(head)
                completed += 1
            assert ring.in_flight == len(held)
            assert len(free) + submitted - completed == 16


def test_b19_the_device_may_be_made_to_write_the_ring_itself(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(0, [(RING, 16 * 8 + 22 + 70, True)])

    def handle(request: Request) -> None:
        request.write(b"\xff" * request.writable)

    ring.drain(handle, fail, 1)
    assert (ring.broken, ring.in_flight, ring.next_used) == (None, 0, 1)
    with pytest.raises(RingError):
        ring.drain(handle, fail, 100)


Breaker = Callable[[Guest], None]


def far_index(guest: Guest) -> None:
    guest.set_avail_idx(1000)


def bad_entry(guest: Guest) -> None:
    guest.offer(77)


def loop(guest: Guest) -> None:
    guest.set_desc(7, DATA, 1, NEXT, 7)
    guest.offer(7)


@pytest.mark.parametrize("breaker", [far_index, bad_entry, loop])
def test_what_is_complete_is_published_before_the_ring_breaks(
    guest: Guest, breaker: Breaker
) -> None:
    ring = guest.ring()
    guest.submit(0, [(DATA, 8, True)])
    guest.submit(1, [(DATA, 8, True)])
    (first, second) = take(ring)
    first.finish(5)
    breaker(guest)
    with pytest.raises(RingError):
        take(ring)
    assert guest.reap() == [(0, 5)]
    assert second.finished


def test_a_new_ring_revives_a_broken_queue(guest: Guest) -> None:
    bad_entry(guest)
    expect_broken(guest, guest.ring(), "no descriptor")
    guest.offered = guest.taken = 0
    guest.set_avail_idx(0)
    guest.set_used_idx(0)
    ring = guest.ring(F_INDIRECT | F_EVENT_IDX, base=0)
    guest.submit(0, [(DATA, 8, True)])
    assert ring.drain(lambda _: None, fail, 10) == 1
    assert guest.reap() == [(0, 0)]
