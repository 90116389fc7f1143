"""The split ring with a lawful driver, and rings that cannot be taken up."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.shm.guest import (
    BOUNDARY,
    DATA,
    INDIRECT,
    NEXT,
    PARTS,
    WRITE,
    Guest,
    expect_broken,
    fail,
    take,
    user,
    write_table,
)
from vuproc.errors import MemoryFault, RingError
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing

LONG_NS, SHORT_NS = 500_000, 20_000
"""Longer than any call is put off, and short enough for many requests to pass meanwhile."""


def work(nanoseconds: int) -> None:
    """Keep the CPU busy."""
    end = time.monotonic_ns() + nanoseconds
    while time.monotonic_ns() < end:
        pass


# What is lawful.


def test_a_request_goes_there_and_back(guest: Guest) -> None:
    ring = guest.ring()
    guest.write(DATA, b"ping")

    def handle(request: Request) -> None:
        request.write(request.read().replace(b"i", b"o"))

    assert ring.drain(handle, fail, 10) == 0
    guest.submit(2, [(DATA, 4, False), (DATA + 64, 16, True)])
    pending = [ring.pending]
    assert ring.drain(handle, fail, 10) == 1
    pending.append(ring.pending)
    assert pending == [True, False]
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


def test_what_is_done_does_not_wait_for_the_next_long_request(guest: Guest) -> None:
    ring = guest.ring()
    for head in range(4):
        guest.submit(head, [(DATA, 8, True)])
    seen = []

    def handle(request: Request) -> None:
        seen.append((guest.used_idx, guest.calls()))
        work(LONG_NS)

    assert ring.drain(handle, fail, 4) == 4
    assert seen == [(0, 0), (1, 1), (2, 1), (3, 1)]


def test_a_sleeping_driver_with_much_waiting_is_woken_less_often() -> None:
    with Guest(256) as guest:
        ring = guest.ring()
        for head in range(256):
            guest.submit(head, [(DATA, 8, True)])
        calls = []

        def handle(request: Request) -> None:
            calls.append(guest.calls())
            work(SHORT_NS)

        began = time.monotonic_ns()
        assert ring.drain(handle, fail, 256) == 256
        spent = time.monotonic_ns() - began
        # One in 400 us, for half of what waits takes longer; near the end one in 100 us. How
        # fast the machine is does not matter: slower requests are fewer to a call.
        assert 2 <= sum(calls) < spent / 200_000


def test_the_driver_gets_its_answers_before_more_work_is_looked_for(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(0, [(DATA, 8, True)])
    done: list[tuple[int, int]] = []

    def handle(request: Request) -> None:
        done.extend(guest.reap())
        if request.head < 3:
            guest.submit(request.head + 1, [(DATA, 8, True)])

    assert ring.drain(handle, fail, 100) == 4
    assert done + guest.reap() == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_indirect_tables_and_direct_descriptors_before_one(guest: Guest) -> None:
    ring = guest.ring()
    guest.write(DATA, b"abcdef")
    entries = [(DATA + 2, 4, NEXT, 2), (0, 0, 0, 0), (DATA + 64, 9, WRITE, 0)]
    write_table(guest, BOUNDARY - 24, entries)
    guest.set_desc(4, DATA, 2, NEXT, 1)
    guest.set_desc(1, BOUNDARY - 24, 48, INDIRECT | WRITE)
    guest.offer(4)
    (request,) = take(ring)
    assert (request.head, request.read(), request.writable) == (4, b"abcdef", 9)


def test_an_indirect_table_may_be_longer_than_the_ring_if_allowed(guest: Guest) -> None:
    entries = [(DATA, 1, NEXT, i + 1) for i in range(39)] + [(DATA, 1, 0, 0)]
    write_table(guest, BOUNDARY, entries)
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


@pytest.mark.parametrize(
    ("call", "hook"),
    [
        ("drain(None, None, 1)", "refuse_kicks"),
        ("take()", "refuse_kicks"),
        ("arm()", "ask_kicks"),
        ("pending", "available"),
        ("waiting", "backlog"),
        ("stop()", "note_end"),
    ],
)
def test_a_ring_whose_layout_lacks_something_ends_the_process(call: str, hook: str) -> None:
    """Nothing would be worse than a hook that forgets requests without a word."""
    code = f"from vuproc.shm.ring import Ring; ring = Ring.__new__(Ring); ring.{call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGABRT
    # qemu-user adds a line of its own for any signal that ends a process.
    said = done.stderr.splitlines()
    assert said[:1] == [f"vuproc: a derived class does not fill in {hook}"]
    assert len(said) == 1 or said[1].startswith("qemu: uncaught target signal 6 ")


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
