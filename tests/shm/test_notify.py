"""Kicks and calls: who is woken when, and what a call descriptor may be."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from tests.shm.guest import DATA, F_EVENT_IDX, NO_INTERRUPT, Guest, fail
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing

MAX_EVENT = 0xFFFFFFFFFFFFFFFE


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest() as made:
        for head in range(made.size):
            made.chain(head, [(DATA, 8, True)])
        yield made


def nothing(request: Request) -> None:
    pass


def serve(guest: Guest, ring: SplitRing, count: int) -> int:
    """Let `count` requests through in one batch; how often was the driver notified?"""
    guest.offer(*range(count))
    # One fetch after the other is handled, so that one publication shows them all.
    held: list[Request] = []

    def hold(request: Request) -> None:
        request.defer()
        held.append(request)

    assert ring.drain(hold, fail, 100) == count
    for request in held:
        request.finish()
    ring.publish()
    guest.taken = guest.used_idx
    return guest.calls()


def test_a_batch_is_one_call(guest: Guest) -> None:
    ring = guest.ring()
    assert [serve(guest, ring, count) for count in (1, 8, 3)] == [1, 1, 1]
    assert ring.publish() == 0 and guest.calls() == 0


def test_no_interrupt_suppresses_calls(guest: Guest) -> None:
    ring = guest.ring()
    guest.set_avail_flags(NO_INTERRUPT)
    assert serve(guest, ring, 4) == 0
    guest.set_avail_flags(0)
    assert serve(guest, ring, 4) == 1
    guest.set_avail_flags(0xFFFE)
    assert serve(guest, ring, 4) == 1


@pytest.mark.parametrize("base", [0, 65533])
def test_c25_used_event_calls_when_it_is_among_the_published(base: int) -> None:
    with Guest(8, base=base) as guest:
        for head in range(8):
            guest.chain(head, [(DATA, 8, True)])
        ring = guest.ring(F_EVENT_IDX)
        # What was published before is not known at first: the first publication calls.
        guest.set_used_event(base + 1000)
        assert serve(guest, ring, 1) == 1
        position = base + 1
        for event, count, calls in (
            (0, 1, 1),
            (0, 4, 1),
            (3, 4, 1),
            (4, 4, 0),
            (-1, 4, 0),
            (1000, 8, 0),
            (7, 8, 1),
            (8, 8, 0),
            (0, 1, 1),
            (32768, 1, 0),
        ):
            guest.set_used_event(position + event)
            assert serve(guest, ring, count) == calls, (event, count)
            position += count


def test_c25_flags_are_ignored_with_event_idx(guest: Guest) -> None:
    ring = guest.ring(F_EVENT_IDX)
    guest.set_avail_flags(NO_INTERRUPT)
    guest.set_used_event(0)
    assert serve(guest, ring, 1) == 1
    guest.set_used_event(1)
    assert serve(guest, ring, 1) == 1


@pytest.mark.parametrize("event", [0, 5, 65535, 0x8000])
def test_c25_garbage_in_the_event_words_loops_nowhere(guest: Guest, event: int) -> None:
    ring = guest.ring(F_EVENT_IDX)
    for _ in range(10):
        guest.set_used_event(event)
        guest.set_word(guest.used + 4 + 8 * guest.size, event)
        assert serve(guest, ring, 3) in (0, 1)
        assert ring.arm() is False


def test_c26_no_interrupt_is_looked_at_after_the_used_index_is_stored(guest: Guest) -> None:
    ring = guest.ring()
    guest.offer(0)

    def handle(request: Request) -> None:
        guest.set_avail_flags(0)

    guest.set_avail_flags(NO_INTERRUPT)
    ring.drain(handle, fail, 1)
    assert guest.calls() == 1


def test_arming_without_event_idx_clears_no_notify(guest: Guest) -> None:
    ring = guest.ring()
    flags = [guest.used_flags]
    assert ring.arm() is False
    flags.append(guest.used_flags)
    ring.drain(nothing, fail, 1)
    flags.append(guest.used_flags)
    assert ring.arm() is False
    flags.append(guest.used_flags)
    ring.disarm()
    flags.append(guest.used_flags)
    assert flags == [0, 0, 1, 0, 1]


def test_arming_with_event_idx_names_the_next_entry(guest: Guest) -> None:
    ring = guest.ring(F_EVENT_IDX)
    for expected in (0, 3, 6, 9):
        assert ring.arm() is False
        assert (guest.avail_event, guest.used_flags) == (expected, 0)
        serve(guest, ring, 3)
    ring.disarm()
    assert (guest.avail_event, guest.used_flags) == (9, 0)


@pytest.mark.parametrize("features", [0, F_EVENT_IDX])
def test_arming_finds_work_that_came_before_it(guest: Guest, features: int) -> None:
    ring = guest.ring(features)
    guest.offer(0)
    assert ring.arm() is True
    ring.drain(nothing, fail, 10)
    assert ring.arm() is False


def test_c24_a_predecessors_no_notify_does_not_stay(guest: Guest) -> None:
    guest.set_word(guest.used, 1)
    ring = guest.ring(F_EVENT_IDX)
    assert guest.used_flags == 0
    del ring


def test_c27_a_kick_on_an_empty_ring_costs_nothing_but_a_look(guest: Guest) -> None:
    ring = guest.ring()
    before = guest.bytes[:]
    for _ in range(1000):
        assert ring.drain(nothing, fail, 100) == 0
        assert ring.arm() is False
    assert guest.bytes[:] == before and guest.calls() == 0


def test_c28_what_came_without_a_kick_is_found_at_the_next_look(guest: Guest) -> None:
    ring = guest.ring()
    assert ring.arm() is False
    guest.offer(0, 1)
    assert ring.pending
    assert ring.drain(nothing, fail, 100) == 2


def test_notify_always_calls_whatever_the_driver_wants(guest: Guest) -> None:
    ring = guest.ring(F_EVENT_IDX)
    guest.set_avail_flags(NO_INTERRUPT)
    ring.notify_always()
    assert guest.calls() == 1
    ring.set_call(-1)
    ring.notify_always()
    assert guest.calls() == 0


def test_a_ring_without_a_call_descriptor_is_polled(guest: Guest) -> None:
    ring = guest.ring()
    ring.set_call(-1)
    assert serve(guest, ring, 3) == 0
    assert guest.used_idx == 3


@pytest.mark.parametrize("kind", ["pipe", "stream", "datagram"])
def test_calls_go_through_pipes_and_sockets(guest: Guest, kind: str) -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    ring = guest.ring(counters=counters)
    if kind == "pipe":
        reading, writing = os.pipe()
    else:
        type_ = socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM
        ours, theirs = socket.socketpair(socket.AF_UNIX, type_)
        reading, writing = ours.detach(), theirs.detach()
    try:
        ring.set_call(writing)
        serve(guest, ring, 2)
        assert os.read(reading, 100) == (1).to_bytes(8, "little")
        assert counters.snapshot().calls == 1
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK])
def test_f06_a_saturated_eventfd_does_not_block(guest: Guest, flags: int) -> None:
    ring = guest.ring()
    blocking = os.eventfd(0, os.EFD_CLOEXEC | flags)
    try:
        os.eventfd_write(blocking, MAX_EVENT)
        ring.set_call(blocking)
        serve(guest, ring, 1)
        ring.notify_always()
        assert os.eventfd_read(blocking) == MAX_EVENT
        serve(guest, ring, 1)
        assert os.eventfd_read(blocking) == 1
    finally:
        os.close(blocking)


@pytest.mark.parametrize("flags", [0, os.O_NONBLOCK])
def test_f06_a_full_pipe_does_not_block(guest: Guest, flags: int) -> None:
    ring = guest.ring()
    reading, writing = os.pipe2(os.O_CLOEXEC | flags)
    try:
        while select.select([], [writing], [], 0)[1]:
            os.write(writing, bytes(4096))
        ring.set_call(writing)
        for _ in range(3):
            serve(guest, ring, 1)
    finally:
        os.close(reading)
        os.close(writing)


def test_f07_the_descriptors_flags_are_left_alone(guest: Guest) -> None:
    ring = guest.ring()
    blocking = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        ring.set_call(blocking)
        serve(guest, ring, 1)
        assert os.get_blocking(blocking)
    finally:
        os.close(blocking)


@pytest.mark.parametrize("kind", ["pipe", "socket", "closed", "read-only"])
def test_f08_a_call_descriptor_that_fails_is_counted_and_the_ring_goes_on(
    guest: Guest, kind: str
) -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    ring = guest.ring(counters=counters)
    if kind == "socket":
        ours, theirs = socket.socketpair()
        ours.close()
        call = theirs.detach()
    elif kind == "read-only":
        call = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    else:
        reading, call = os.pipe()
        os.close(reading)
    if kind == "closed":
        os.close(call)
    try:
        ring.set_call(call)
        serve(guest, ring, 1)
        serve(guest, ring, 1)
        snapshot = counters.snapshot()
        assert (snapshot.calls, snapshot.call_errors) == (0, 2)
    finally:
        if kind != "closed":
            os.close(call)
    ring.set_call(guest.call)
    assert serve(guest, ring, 1) == 1
    assert guest.used_idx == 3
