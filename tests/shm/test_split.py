"""The split ring: chains as the driver may build them, and as a hostile one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    PARTS,
    RING,
    WRITE,
    Guest,
    descriptor,
    fail,
    take,
    user,
)
from vuproc.errors import MemoryFault, RingError
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.request import Request
from vuproc.shm.ring import Ring
from vuproc.shm.split import SplitRing


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest() as made:
        yield made
        assert made.intact()


def expect_broken(guest: Guest, ring: SplitRing, cause: str, index: int = 0) -> None:
    """The next look at the ring finds it broken, and from then on nothing of it is written."""
    reached: list[Request] = []
    with pytest.raises(RingError, match=cause) as caught:
        ring.drain(reached.append, fail, 100)
    error = caught.value
    assert (error.queue, error.index, reached) == (3, index, [])
    assert ring.broken is not None and ring.broken.args == error.args
    before = guest.bytes[:]
    guest.offer(0)
    guest.bytes[:] = before
    for touch in (lambda: ring.drain(reached.append, fail, 100), ring.arm):
        with pytest.raises(RingError, match=cause):
            touch()
    ring.disarm()
    assert (ring.publish(), ring.pending, ring.in_flight, ring.unpublished) == (0, False, 0, 0)
    assert guest.bytes[:] == before
    assert reached == []


def table(guest: Guest, at: int, entries: list[tuple[int, int, int, int]]) -> None:
    guest.write(at, b"".join(descriptor(*entry) for entry in entries))


# What is lawful.


def test_a_request_goes_there_and_back(guest: Guest) -> None:
    ring = guest.ring()
    guest.write(DATA, b"ping")

    def handle(request: Request) -> None:
        request.write(request.read().replace(b"i", b"o"))

    assert ring.drain(handle, fail, 10) == 0
    guest.submit(2, [(DATA, 4, False), (DATA + 64, 16, True)])
    assert ring.pending
    assert ring.drain(handle, fail, 10) == 1
    assert not ring.pending
    assert guest.reap() == [(2, 4)]
    assert guest.read(DATA + 64, 5) == b"pong\0"


def test_budget_bounds_a_drain(guest: Guest) -> None:
    ring = guest.ring()
    for head in range(6):
        guest.submit(head, [(DATA, 1, True)])
    assert ring.drain(lambda _: None, fail, 4) == 4
    assert ring.pending
    assert len(guest.reap()) == 4
    assert ring.drain(lambda _: None, fail, 4) == 2


def test_requests_finish_out_of_order(guest: Guest) -> None:
    ring = guest.ring()
    for head in (5, 1, 3):
        guest.submit(head, [(DATA, 8, True)])
    requests = take(ring)
    assert [request.head for request in requests] == [5, 1, 3]
    assert ring.in_flight == 3
    for request in reversed(requests):
        request.finish(request.head)
    assert (ring.in_flight, ring.unpublished, guest.reap()) == (0, 3, [])
    assert ring.publish() == 3
    assert guest.reap() == [(3, 3), (1, 1), (5, 5)]
    assert ring.publish() == 0


def test_what_is_not_finished_at_return_is_finished(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(0, [(DATA, 8, True)])

    def handle(request: Request) -> None:
        request.write(b"abc")

    ring.drain(handle, fail, 1)
    assert guest.reap() == [(0, 3)]


def test_an_exception_goes_to_on_error_and_the_ring_goes_on(guest: Guest) -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    ring = guest.ring(counters=counters)
    for head in range(3):
        guest.submit(head, [(DATA, 8, True)])
    errors: list[tuple[int, BaseException]] = []

    def handle(request: Request) -> object:
        if request.head == 0:
            raise KeyError("device")
        return 5 if request.head == 1 else None

    def on_error(request: Request, error: BaseException) -> None:
        errors.append((request.head, error))
        request.write(b"!")
        if request.head == 1:
            request.defer()

    assert ring.drain(handle, on_error, 10) == 3
    assert [(head, type(error)) for head, error in errors] == [(0, KeyError), (1, TypeError)]
    assert str(errors[1][1]) == "handle returned int, not None"
    assert guest.reap() == [(0, 1), (1, 1), (2, 0)]
    assert counters.snapshot().errors == 2


def test_an_exception_of_on_error_comes_out_with_everything_published(guest: Guest) -> None:
    ring = guest.ring()
    for head in range(3):
        guest.submit(head, [(DATA, 8, True)])

    def handle(request: Request) -> None:
        if request.head == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ring.drain(handle, fail, 10)
    assert guest.reap() == [(0, 0), (1, 0)]
    assert ring.drain(handle, fail, 10) == 1


def test_a_handler_may_stop_the_ring_and_not_drain_it(guest: Guest) -> None:
    ring = guest.ring()
    for head in range(3):
        guest.submit(head, [(DATA, 8, True)])
    seen = []

    def handle(request: Request) -> None:
        seen.append(request.head)
        with pytest.raises(RuntimeError, match="from a handler"):
            ring.drain(handle, fail, 1)
        ring.stop()

    assert ring.drain(handle, fail, 10) == 1
    assert seen == [0] and guest.reap() == []
    assert ring.stopped and ring.stop() == 1


def test_batches_are_published_as_they_fill() -> None:
    with Guest(256) as guest:
        ring = guest.ring()
        for head in range(200):
            guest.submit(head, [(DATA, 8, True)])
        seen = []

        def handle(request: Request) -> None:
            seen.append(guest.used_idx)

        assert ring.drain(handle, fail, 256) == 200
        # At most 64 are held back, and those no longer than 100 us.
        assert all(i - shown <= 64 for i, shown in enumerate(seen))
        assert guest.reap() == [(head, 0) for head in range(200)]


def test_the_driver_gets_its_answers_before_more_work_is_looked_for(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(0, [(DATA, 8, True)])
    rounds = []

    def handle(request: Request) -> None:
        rounds.append(guest.reap())
        if len(rounds) < 4:
            guest.submit(len(rounds), [(DATA, 8, True)])

    assert ring.drain(handle, fail, 100) == 4
    assert sum(rounds, []) + guest.reap() == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_indirect_tables_and_direct_descriptors_before_one(guest: Guest) -> None:
    ring = guest.ring()
    guest.write(DATA, b"abcdef")
    table(guest, BOUNDARY - 24, [(DATA + 2, 4, NEXT, 2), (0, 0, 0, 0), (DATA + 64, 9, WRITE, 0)])
    guest.set_desc(4, DATA, 2, NEXT, 1)
    guest.set_desc(1, BOUNDARY - 24, 48, INDIRECT | WRITE)
    guest.offer(4)
    (request,) = take(ring)
    assert (request.head, request.read(), request.writable) == (4, b"abcdef", 9)


def test_an_indirect_table_may_be_longer_than_the_ring_if_allowed(guest: Guest) -> None:
    entries = [(DATA, 1, NEXT, i + 1) for i in range(39)] + [(DATA, 1, 0, 0)]
    table(guest, BOUNDARY, entries)
    guest.set_desc(0, BOUNDARY, 16 * 40, INDIRECT)
    guest.offer(0)
    (request,) = take(guest.ring(chain_limit=40))
    assert request.readable == 40
    expect_broken(guest, guest.ring(chain_limit=39), "table is too long")


def test_a_ring_goes_on_where_another_stopped() -> None:
    with Guest(8, base=65534) as guest:
        ring = guest.ring()
        assert (ring.next_avail, ring.next_used) == (65534, 65534)
        for head in range(3):
            guest.submit(head, [(DATA, 8, True)])
        ring.drain(lambda _: None, fail, 10)
        assert ring.stop() == 1
        assert guest.reap() == [(0, 0), (1, 0), (2, 0)]
        guest.submit(3, [(DATA, 8, True)])
        ring = guest.ring(base=1)
        ring.drain(lambda _: None, fail, 10)
        assert guest.reap() == [(3, 0)]


def test_stop_touches_nothing(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(0, [(DATA, 8, True)])
    (request,) = take(ring)
    request.finish()
    before = guest.bytes[:]
    assert ring.stop() == 1
    assert (ring.publish(), ring.arm(), ring.pending) == (0, False, False)
    assert ring.drain(lambda _: None, fail, 10) == 0
    ring.notify_always()
    assert guest.bytes[:] == before and guest.calls() == 0


def test_a_ring_moves_to_a_new_table(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(0, [(DATA, 8, True)])
    (held,) = take(ring)
    part = PARTS[2]
    ring.rebind(guest.memory.with_region(1 << 40, 4096, 1 << 44, part.offset, guest.fd))
    with pytest.raises(ValueError, match="1 requests in flight"):
        ring.rebind(guest.memory.without_region(part.guest, part.size, part.user))
    held.write(b"x")
    held.finish()
    ring.rebind(guest.memory.without_region(part.guest, part.size, part.user))
    assert guest.reap() == [(0, 1)]
    guest.submit(1, [(part.guest, 8, True)])
    expect_broken(guest, ring, "buffer is not guest memory", 1)


def test_b15_a_ring_that_loses_its_memory_breaks(guest: Guest) -> None:
    ring = guest.ring()
    part = PARTS[0]
    with pytest.raises(RingError, match="not covered by the new memory table"):
        ring.rebind(guest.memory.without_region(part.guest, part.size, part.user))
    assert ring.broken is not None
    guest.submit(0, [(DATA, 8, True)])
    before = guest.bytes[:]
    with pytest.raises(RingError):
        ring.drain(lambda _: None, fail, 10)
    assert guest.bytes[:] == before


def test_a_ring_without_a_layout_does_nothing() -> None:
    ring = Ring.__new__(Ring)
    assert ring.drain(lambda _: None, fail, 10) == 0
    assert (ring.publish(), ring.pending, ring.arm(), ring.stop()) == (0, False, False, 0)


# Rings that cannot be taken up.


def ring_at(guest: Guest, size: int, desc: int, avail: int, used: int) -> SplitRing:
    return SplitRing(3, size, guest.memory, desc, avail, used, 0, features=0, chain_limit=0)


@pytest.mark.parametrize("size", [0, 3, 12, 32767, 65536, 1 << 20, 1 << 40, -8])
def test_a20_a21_a22_sizes_that_no_ring_has(guest: Guest, size: int) -> None:
    base = user(DATA)
    with pytest.raises(RingError, match="no power of two up to 32768"):
        ring_at(guest, size, base, base + 4096, base + 8192)


@pytest.mark.parametrize(("which", "by"), [("desc", 8), ("avail", 1), ("used", 2)])
def test_b21_misaligned_rings_are_refused(guest: Guest, which: str, by: int) -> None:
    places = {"desc": user(DATA), "avail": user(DATA) + 4096, "used": user(DATA) + 8192}
    places[which] += by
    with pytest.raises(RingError, match=f"{which}.* is not aligned"):
        ring_at(guest, 8, **places)


def test_b21_a_region_at_an_odd_offset_misaligns_its_rings(guest: Guest) -> None:
    guest.memory = guest.memory.with_region(1 << 40, 4096, 1 << 44, 0x41001, guest.fd)
    base = 1 << 44
    with pytest.raises(RingError, match="not aligned"):
        ring_at(guest, 8, base, base + 1024, base + 2048)


@pytest.mark.parametrize(("which", "length"), [("desc", 128), ("avail", 22), ("used", 70)])
def test_b22_the_whole_ring_with_its_event_words_is_inside_one_region(
    guest: Guest, which: str, length: int
) -> None:
    end = PARTS[1].user + PARTS[1].size
    room = (length + 15) & ~15
    places = {"desc": user(DATA), "avail": user(DATA) + 4096, "used": user(DATA) + 8192}
    places[which] = end - room
    ring_at(guest, 8, **places)
    places[which] = end - room + 16
    with pytest.raises(MemoryFault, match="not inside one region") as caught:
        ring_at(guest, 8, **places)
    assert (caught.value.address, caught.value.length) == (end - room + 16, length)
    places[which] = 0x1000
    with pytest.raises(MemoryFault):
        ring_at(guest, 8, **places)


def test_b20_areas_that_overlap_neither_loop_nor_crash(guest: Guest) -> None:
    base = user(DATA)
    ring = ring_at(guest, 8, base, base, base)
    guest.write(DATA, bytes(range(256)))
    for _ in range(3):
        try:
            ring.drain(lambda _: None, fail, 100)
            ring.arm()
        except RingError:
            break


# What a hostile driver does.


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
    table(guest, DATA, [(DATA, 1, NEXT, i + 1) for i in range(7)] + [(DATA, 1, 0, 0)])
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
        table(guest, DATA, entries)
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
        table(guest, DATA - 16, one_more)
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


@pytest.mark.parametrize("length", [0, 1, 15, 17, 0xFFFFFFFF])
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
    table(guest, DATA, [(DATA, 16, NEXT, 1), (DATA, 16, flags, 0)])
    guest.set_desc(0, DATA, 32, INDIRECT)
    guest.offer(0)
    expect_broken(guest, guest.ring(), "indirect descriptor in an indirect table")


def test_c18_indirect_with_next_breaks_ring(guest: Guest) -> None:
    table(guest, DATA, [(DATA, 16, 0, 0)])
    guest.set_desc(0, DATA, 16, INDIRECT | NEXT, 1)
    guest.offer(0)
    expect_broken(guest, guest.ring(), "indirect descriptor with a next one")


def test_c19_indirect_without_the_feature_breaks_ring(guest: Guest) -> None:
    table(guest, DATA, [(DATA, 16, 0, 0)])
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
        table(guest, at, [(DATA, 5, NEXT, 1), (DATA, 6, WRITE, 0)])
        ring = guest.ring()
        guest.set_desc(0, at, 32, INDIRECT)
        guest.offer(0)
        (request,) = take(ring)
        assert (request.readable, request.writable) == (5, 6)
        request.finish()
        ring.publish()


@pytest.mark.parametrize("loop", [[0], [1, 0], [1, 2, 0]])
def test_c21_indirect_table_loop_breaks_ring(guest: Guest, loop: list[int]) -> None:
    table(guest, DATA, [(DATA, 4, NEXT, next_) for next_ in loop])
    guest.set_desc(0, DATA, 16 * len(loop), INDIRECT)
    guest.offer(0)
    expect_broken(guest, guest.ring(), "chain loops")


def test_c22_write_on_an_indirect_descriptor_and_unknown_flags_are_ignored(guest: Guest) -> None:
    table(guest, DATA, [(DATA, 4, NEXT | 0xFFF8, 1), (DATA, 5, WRITE | 0xFFF8, 7)])
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
