"""Requests that the device gives back, and those that it pulls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.shm.guest import (
    DATA,
    F_EVENT_IDX,
    F_INDIRECT,
    HOLE,
    PARTS,
    Guest,
    fail,
    take,
)
from tests.shm.record import Record, heads, restart, start, submit
from vuproc.errors import RequestFinished, RingError
from vuproc.shm.memory import GuestMemory
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(8) as made:
        yield made


@pytest.fixture
def record() -> Iterator[Record]:
    with Record(8) as made:
        yield made


def give_all_back(ring: SplitRing) -> list[int]:
    """Drain, and release all; the heads."""
    seen: list[int] = []

    def handle(request: Request) -> None:
        seen.append(request.head)
        request.release()

    ring.drain(handle, fail, 100)
    return seen


def pull(ring: SplitRing) -> Request:
    request = ring.take()
    assert request is not None
    return request


# Release and readmit.


def test_released_requests_are_nobodys_until_they_are_readmitted(
    guest: Guest, record: Record
) -> None:
    ring = start(guest, record)
    submit(guest, 5, 2, 7)
    assert give_all_back(ring) == [5, 2, 7]
    assert (ring.in_flight, ring.released, ring.outstanding, ring.waiting) == (0, 3, 3, 0)
    assert not ring.pending and not ring.arm() and heads(ring) == []
    assert guest.reap() == [] and record.live == [5, 2, 7]
    submit(guest, 1)
    assert ring.readmit() == 3
    assert (ring.released, ring.waiting, ring.pending, ring.arm()) == (0, 4, True, True)
    assert heads(ring) == [5, 2, 7, 1]
    assert ring.readmit() == 0 and ring.outstanding == 0 and record.live == []


def test_release_ends_the_object(guest: Guest) -> None:
    ring = guest.ring()
    submit(guest, 0)
    (request,) = take(ring)
    request.release()
    assert request.finished and "released" in repr(request)
    for verb in (request.release, request.finish, request.defer, request.read):
        with pytest.raises(RequestFinished):
            verb()
    ring.readmit()
    (again,) = take(ring)
    assert again is not request and again.head == 0 and not again.finished


def test_what_was_read_and_written_before_begins_anew(guest: Guest) -> None:
    ring = guest.ring()
    guest.write(DATA, b"question")
    guest.submit(0, [(DATA, 8, False), (DATA + 8, 8, True)])
    (request,) = take(ring)
    assert request.read() == b"question" and request.write(b"answer") == 6
    request.release()
    guest.write(DATA, b"changed!")
    ring.readmit()
    (request,) = take(ring)
    assert (request.read(), request.written, request.writable) == (b"changed!", 0, 8)


def test_the_order_is_that_of_the_fetches(guest: Guest, record: Record) -> None:
    submit(guest, 6, 3)
    take(start(guest, record))
    ring = restart(guest, record)
    submit(guest, 1, 4)
    first, *rest = take(ring)
    for request in reversed(rest):
        request.release()
    assert ring.readmit() == 3
    # The oldest of all, while the others wait already.
    first.release()
    assert ring.readmit() == 1
    assert heads(ring) == [6, 3, 1, 4]


def test_a_handler_that_raises_after_it_gave_a_request_back(guest: Guest) -> None:
    ring = guest.ring()
    submit(guest, 0)
    errors: list[BaseException] = []

    def handle(request: Request) -> None:
        request.release()
        raise KeyError

    assert ring.drain(handle, lambda _, error: errors.append(error), 10) == 1
    assert len(errors) == 1 and ring.released == 1 and guest.reap() == []


def test_release_and_readmit_in_a_handler_end_with_the_budget(guest: Guest) -> None:
    ring = guest.ring()
    submit(guest, 0)

    def handle(request: Request) -> None:
        request.release()
        ring.readmit()

    assert ring.drain(handle, fail, 10) == 10
    assert (ring.in_flight, ring.waiting) == (0, 1)


def test_a_table_may_change_under_released_requests(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(0, [(HOLE - 8, 8, True)])
    give_all_back(ring)
    second = PARTS[1]
    shorter = guest.memory.without_region(second.guest, second.size, second.user)
    ring.rebind(shorter)
    ring.readmit()
    # The chain is read anew, under the table of today.
    with pytest.raises(RingError, match="buffer is not guest memory"):
        ring.drain(lambda _: None, fail, 10)
    assert (ring.released, ring.outstanding) == (0, 0)


def test_a_head_that_was_given_back_is_in_flight_for_the_driver(guest: Guest) -> None:
    ring = guest.ring()
    submit(guest, 0)
    give_all_back(ring)
    submit(guest, 0)
    with pytest.raises(RingError, match="in flight already"):
        ring.drain(lambda _: None, fail, 10)


@pytest.mark.parametrize("resubmit", ["run", "drop"])
def test_a_death_loses_no_released_request_and_blames_none(
    guest: Guest, record: Record, resubmit: str
) -> None:
    ring = start(guest, record)
    ring.resubmit = resubmit  # type: ignore[assignment]
    submit(guest, 1, 2)
    give_all_back(ring)
    assert [(record[head].attempts, record[head].stage) for head in (1, 2)] == [(0, 0)] * 2
    skipped: list[int] = []
    ring = restart(guest, record)
    ring.on_skip = lambda request, reason, attempts: skipped.append(request.head)
    assert heads(ring, resubmit=resubmit) == [1, 2] and skipped == []


# The stop.


def test_a_stop_takes_back_what_was_fetched_last(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 3)
    heads(ring)
    submit(guest, 5, 2)
    give_all_back(ring)
    assert (ring.next_avail, ring.stop(), ring.kept) == (3, 1, 0)
    assert record.live == [] and record.header.version == 0
    ring = start(guest, record, base=1)
    assert heads(ring) == [5, 2]


def test_a_stop_keeps_what_others_have_followed(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 5, 2)
    first, second = take(ring)
    second.finish()
    ring.publish()
    first.release()
    assert (ring.outstanding, ring.stop(), ring.kept) == (1, 2, 1)
    assert record.live == [5] and record.header.version == 1
    ring = restart(guest, record)
    # That head 2 was fetched after it is seen in the avail ring.
    assert (ring.outstanding, ring.stop(), ring.kept) == (1, 2, 1)
    assert heads(restart(guest, record)) == [5]


def test_a_stop_after_a_death_takes_back_those_that_nobody_has_followed(
    guest: Guest, record: Record
) -> None:
    ring = start(guest, record)
    submit(guest, 1, 5, 2)
    take(ring)[1].finish()
    ring.publish()
    ring = restart(guest, record)
    assert [found.head for found in ring.recovered] == [1, 2]
    # Head 5 came after 1, and is done; 2 is the last of all.
    first, last = take(ring)
    last.release()
    first.finish()
    ring.publish()
    assert (ring.outstanding, ring.stop(), ring.kept) == (1, 2, 0)
    assert heads(start(guest, record, base=2)) == [2]


def test_a_stop_keeps_all_while_the_device_has_one(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 0, 1)
    _, second = take(ring)
    second.release()
    assert (ring.stop(), ring.kept, record.live) == (2, 2, [0, 1])


def test_a_stop_keeps_the_record_if_it_is_told_to(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 0)
    give_all_back(ring)
    assert (ring.stop(keep=True), ring.kept, record.live) == (1, 1, [0])


@pytest.mark.parametrize(
    ("attempts", "stage", "policy", "kept"),
    [(0, 0, "drop", 0), (0, 1, "run", 0), (0, 2, "drop", 0)]
    + [(1, 0, "run", 1), (0, 1, "drop", 1), (0, 3, "run", 1), (0, 4, "run", 1)],
)
def test_a_stop_keeps_what_a_dead_worker_may_have_begun(
    guest: Guest, record: Record, attempts: int, stage: int, policy: str, kept: int
) -> None:
    """The attempts and the stage would be gone with the mark."""
    submit(guest, 6)
    take(start(guest, record))
    record.set_entry(6, attempts=attempts, stage=stage)
    ring = restart(guest, record)
    ring.resubmit = policy  # type: ignore[assignment]
    assert (ring.stop(), ring.kept, record.header.version) == (kept, kept, kept)


def test_a_stop_after_a_death_notifies_the_driver_of_what_it_may_have_missed(
    guest: Guest, record: Record
) -> None:
    submit(guest, 6)
    take(start(guest, record))
    ring = restart(guest, record)
    assert (ring.stop(), record.header.version, guest.calls()) == (0, 0, 1)


def test_a_request_held_over_a_whole_round_of_the_index_is_not_the_last(record: Record) -> None:
    with Guest(8) as guest:
        ring = start(guest, record)
        submit(guest, 7)
        (held,) = take(ring)
        for _ in range(0x10000 // 4):
            submit(guest, 0, 1, 2, 3)
            ring.drain(lambda _: None, fail, 100)
        assert (ring.next_avail, guest.used_idx) == (1, 0)
        held.release()
        assert (ring.stop(), ring.kept, record.live) == (1, 1, [7])


def test_a_broken_ring_drops_them(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 0, 1)
    give_all_back(ring)
    with pytest.raises(RingError):
        ring.rebind(GuestMemory())
    assert (ring.released, ring.outstanding, ring.readmit(), ring.waiting) == (0, 0, 0, 0)
    assert record.live == [0, 1] and (ring.stop(), ring.kept) == (2, 0)
    with pytest.raises(RingError):
        ring.take()


# Pull.


@pytest.mark.parametrize("features", [F_INDIRECT, F_INDIRECT | F_EVENT_IDX])
def test_a_device_pulls_until_there_is_none_and_kicks_are_asked_for(
    guest: Guest, features: int
) -> None:
    ring = guest.ring(features)
    submit(guest, 4, 1)
    assert ring.waiting == 2
    first = pull(ring)
    assert (first.head, first.deferred, first.finished, ring.in_flight) == (4, True, False, 1)
    if not features & F_EVENT_IDX:
        assert guest.used_flags == 1
    second = pull(ring)
    assert (second.head, ring.waiting) == (1, 0)
    assert ring.take() is None
    assert guest.used_flags == 0 and (not features & F_EVENT_IDX or guest.avail_event == 2)
    second.finish()
    first.finish()
    assert guest.reap() == [] and ring.publish() == 2
    assert guest.reap() == [(1, 0), (4, 0)]


def test_what_is_finished_is_shown_when_there_is_nothing_to_take(guest: Guest) -> None:
    ring = guest.ring()
    submit(guest, 0)
    pull(ring).finish()
    assert ring.unpublished == 1
    assert ring.take() is None and guest.reap() == [(0, 0)] and guest.calls() == 1


def test_recovered_and_readmitted_requests_are_pulled_first(guest: Guest, record: Record) -> None:
    submit(guest, 6, 3, 5)
    take(start(guest, record))
    record.set_entry(6, attempts=3)
    record.set_entry(3, stage=4)
    ring = restart(guest, record)
    skipped: list[tuple[int, str, int]] = []
    ring.on_skip = lambda request, reason, attempts: skipped.append(
        (request.head, reason, attempts)
    )
    submit(guest, 0)
    assert pull(ring).head == 5
    assert skipped == [(6, "poison", 3), (3, "fail", 0)] and guest.calls() == 1
    pull(ring).release()
    ring.readmit()
    assert pull(ring).head == 0 and ring.take() is None
    assert guest.reap() == [(6, 0), (3, 0)]


def test_an_exception_of_on_skip_comes_out_and_the_request_is_finished(
    guest: Guest, record: Record
) -> None:
    submit(guest, 6)
    take(start(guest, record))
    record.set_entry(6, attempts=3)
    ring = restart(guest, record)

    def skip(request: Request, reason: str, attempts: int) -> None:
        with pytest.raises(RuntimeError, match="the same queue"):
            ring.take()
        raise KeyError(reason)

    ring.on_skip = skip
    with pytest.raises(KeyError, match="poison"):
        ring.take()
    assert ring.take() is None and guest.reap() == [(6, 0)]


@pytest.mark.parametrize(("policy", "stage"), [("run", 0), ("drop", 1)])
def test_a_pulled_request_counts_as_begun_and_blames_nobody(
    guest: Guest, record: Record, policy: str, stage: int
) -> None:
    ring = start(guest, record)
    ring.resubmit = policy  # type: ignore[assignment]
    submit(guest, 2)
    request = pull(ring)
    assert (record[2].attempts, record[2].stage) == (0, stage)
    request.release()
    assert (record[2].attempts, record[2].stage) == (0, 0)


def test_a_pull_from_the_handler_of_another_queue(guest: Guest) -> None:
    ring = guest.ring()
    with Guest(8) as other:
        receiving = other.ring()
        submit(other, 3)
        guest.write(DATA, b"echo")
        guest.submit(0, [(DATA, 4, False)])

        def handle(request: Request) -> None:
            with pytest.raises(RuntimeError, match="the same queue"):
                ring.take()
            buffer = pull(receiving)
            buffer.write(request.read())
            buffer.finish()

        assert ring.drain(handle, fail, 10) == 1
        assert receiving.publish() == 1
        assert other.reap() == [(3, 4)] and other.read(DATA, 4) == b"echo"


def test_a_pull_from_a_broken_or_stopped_ring(guest: Guest) -> None:
    ring = guest.ring()
    guest.offer(9)
    with pytest.raises(RingError, match="no descriptor of the table"):
        ring.take()
    assert (ring.waiting, ring.pending) == (0, False)
    stopped = guest.ring()
    stopped.stop()
    assert stopped.take() is None and stopped.waiting == 0


def test_a_lying_avail_index_makes_nobody_wait_for_more_than_the_ring_holds(guest: Guest) -> None:
    ring = guest.ring()
    guest.set_avail_idx(1000)
    assert ring.waiting == 8
    with pytest.raises(RingError, match="further on than the ring is long"):
        ring.take()


# A request's own word.


@pytest.mark.parametrize(("word", "stage"), [("run", 2), ("drop", 3), ("fail", 4)])
def test_a_request_says_itself_what_becomes_of_it(
    guest: Guest, record: Record, word: str, stage: int
) -> None:
    for policy in ("run", "drop", "fail"):
        with Guest(8) as guest, Record(8) as record:
            ring = start(guest, record)
            ring.resubmit = policy
            submit(guest, 2)
            (request,) = take(ring)
            assert request.resubmit == policy
            request.resubmit = word  # type: ignore[assignment]
            assert (request.resubmit, record[2].stage) == (word, stage)
            ring = restart(guest, record)
            ring.resubmit = policy
            reasons: list[str] = []
            ring.on_skip = lambda request, reason, attempts, found=reasons: found.append(reason)
            assert heads(ring) == ([2] if word == "run" else [])
            assert reasons == ([] if word == "run" else [word])


@pytest.mark.parametrize("stage", [1, 5, 200, 255])
def test_an_unknown_stage_is_as_the_ring_says(guest: Guest, record: Record, stage: int) -> None:
    submit(guest, 2)
    take(start(guest, record))
    record.set_entry(2, stage=stage)
    ring = restart(guest, record)
    reasons: list[str] = []
    ring.on_skip = lambda request, reason, attempts: reasons.append(reason)
    assert heads(ring, resubmit="drop") == [] and reasons == ["drop"]


def test_a_word_is_one_of_three_and_comes_before_the_end(guest: Guest) -> None:
    ring = guest.ring()
    submit(guest, 0)
    (request,) = take(ring)
    with pytest.raises(ValueError, match="run, drop or fail"):
        request.resubmit = "again"  # type: ignore[assignment]
    request.finish()
    with pytest.raises(RequestFinished):
        request.resubmit = "drop"
    assert request.resubmit == "run"


def test_the_next_request_of_a_head_has_no_word(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 2)
    (request,) = take(ring)
    request.resubmit = "fail"
    request.finish()
    ring.publish()
    submit(guest, 2)
    (request,) = take(ring)
    assert (request.resubmit, record[2].stage) == ("run", 0)


def test_a_ring_in_the_place_of_another_finds_the_record_as_it_was(
    guest: Guest, record: Record
) -> None:
    """As `Queue.start` does it: the old ring goes first, and keeps the record."""
    submit(guest, 5, 2, 7)
    take(start(guest, record))
    held = restart(guest, record)
    held.set_call(-1)
    held.stop(keep=True)
    ring = restart(guest, record)
    assert [recovered.head for recovered in ring.recovered] == [5, 2, 7]
    requests = take(ring)
    requests[2].finish()
    ring.publish()
    assert heads(restart(guest, record)) == [5, 2]
