"""The in-flight record: its layout, where its marks stand, and what comes back after a death."""

from __future__ import annotations

import gc
import os

import pytest

from tests.shm.guest import DATA, F_EVENT_IDX, F_INDIRECT, HOLE, NEXT, Guest, fail, take
from tests.shm.record import ENTRY, HEADER, Entry, Header, Record, heads, restart, start, submit
from vuproc.errors import MemoryFault, RingError
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.inflight import POISON_ATTEMPTS, Recovered, SplitRecord, record_bytes
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing
from vuproc.spec.inflight import INFLIGHT_SPLIT_DESC, INFLIGHT_SPLIT_HEADER, split_record_bytes

# Layout.


def test_the_layout_is_the_specifications() -> None:
    assert (HEADER.size, ENTRY.size) == (INFLIGHT_SPLIT_HEADER.size, INFLIGHT_SPLIT_DESC.size)
    header = INFLIGHT_SPLIT_HEADER.unpack(HEADER.pack(1, 2, 3, 4, 5))
    assert list(header.values()) == [1, 2, 3, 4, 5]
    entry = INFLIGHT_SPLIT_DESC.unpack(ENTRY.pack(1, 7, 7, 7, 5, 6))
    assert (entry["inflight"], entry["next"], entry["counter"]) == (1, 5, 6)


@pytest.mark.parametrize("size", [1, 2, 128, 256, 1024, 32768])
def test_records_lie_as_far_apart_as_those_of_other_back_ends(size: int) -> None:
    assert record_bytes(size) == split_record_bytes(size)
    assert record_bytes(128) == 2112


@pytest.mark.parametrize("size", [0, -1, 32769, 1 << 40])
def test_a_record_of_no_possible_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"not in 1\.\.32768"):
        record_bytes(size)
    with pytest.raises(ValueError, match=r"not in 1\.\.32768"):
        SplitRecord(0, 0, size)


def test_a35_a_record_is_mapped_only_if_its_file_holds_all_of_it(record: Record) -> None:
    end = len(record.bytes)
    assert SplitRecord(record.fd, record.offset, 8).version == 0
    SplitRecord(record.fd, end - 16 * 9, 8)
    for offset in (end - 16 * 9 + 8, end, -8, 1 << 62):
        with pytest.raises(MemoryFault):
            SplitRecord(record.fd, offset, 8)
    with pytest.raises(MemoryFault, match="not aligned to 8"):
        SplitRecord(record.fd, 4, 8)
    with pytest.raises(MemoryFault):
        SplitRecord(record.fd, 0, 32768)


def test_a_read_only_record_is_refused(record: Record) -> None:
    fd = os.open(f"/proc/self/fd/{record.fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(MemoryFault, match="mmap"):
            SplitRecord(fd, 0, 8)
    finally:
        os.close(fd)


def test_a_record_for_another_ring_is_our_own_mistake(guest: Guest) -> None:
    with Record(16) as record, pytest.raises(ValueError, match="16 entries and a ring of 8"):
        start(guest, record)


# The marks, as they come and go.


def test_a_request_leaves_its_marks(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    assert record.header == Header(0, 1, 8, 0, 0)
    submit(guest, 3, 5)
    seen: list[list[Entry]] = []

    def handle(request: Request) -> None:
        seen.append([record[3], record[5]])

    ring.drain(handle, fail, 10)
    first, second = seen
    assert first == [Entry(1, 1, 0, 0, 0, 0), Entry(0, 0, 0, 0, 0, 0)]
    assert second[1] == Entry(1, 1, 0, 0, 0, 1)
    # Where the machine stood still in between, the first is published by now.
    assert second[0] in (Entry(1, 0, 0, 0, 0, 0), Entry(0, 0, 0, 0, 0, 0))
    assert record.header == Header(0, 1, 8, 5, 2)
    assert (record[3].next, record[5].next, record.live) == (0, 3, [])
    submit(guest, 1)
    assert heads(ring) == [1]
    assert (record.header.last_batch_head, record[1].next, record[1].counter) == (1, 5, 2)


@pytest.mark.parametrize(("resubmit", "stage"), [("run", 0), ("drop", 1), ("fail", 1)])
def test_the_stage_is_written_for_devices_that_ask(
    guest: Guest, record: Record, resubmit: str, stage: int
) -> None:
    ring = start(guest, record)
    submit(guest, 2)
    seen = []
    ring.resubmit = resubmit  # type: ignore[assignment]
    assert ring.resubmit == resubmit
    ring.drain(lambda _: seen.append(record[2].stage), fail, 10)
    assert seen == [stage]


def test_resubmit_is_one_of_three(guest: Guest) -> None:
    ring = guest.ring()
    assert ring.resubmit == "run"
    with pytest.raises(ValueError, match="run, drop or fail"):
        ring.resubmit = "again"  # type: ignore[assignment]


def test_an_attempt_counts_only_as_long_as_the_device_is_at_it(
    guest: Guest, record: Record
) -> None:
    ring = start(guest, record)
    submit(guest, 0, 1, 2)
    (first, *_) = take(ring)
    assert [record[head].attempts for head in range(3)] == [0, 0, 0]
    first.finish()
    assert record.live == [0, 1, 2]
    ring.publish()
    assert record.live == [1, 2]


def test_a_failed_request_is_completed_like_any_other(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 0)

    def handle(request: Request) -> None:
        raise KeyError("device")

    ring.drain(handle, lambda request, error: None, 10)
    assert guest.reap() == [(0, 0)] and record.live == [] and record[0].attempts == 0


@pytest.mark.parametrize("used", [0, 1, 40000, 65535])
def test_a37_a_new_record_begins_at_the_live_used_index(record: Record, used: int) -> None:
    with Guest(8, base=used) as guest:
        ring = guest.ring(base=used, record=record.map())
        assert record.header == Header(0, 1, 8, 0, used)
        submit(guest, 4)
        assert (ring.next_avail, ring.recovered, heads(ring)) == (used, (), [4])
        assert restart(guest, record).outstanding == 0


def test_a_fresh_start_forgets_what_was_there(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 1, 2)
    take(ring)
    ring = start(guest, record, base=2)
    assert (ring.next_avail, ring.outstanding, record.live) == (2, 0, [])
    guest.calls()
    assert heads(ring) == [] and guest.calls() == 0


# Death.


def test_what_was_in_flight_comes_back_in_its_order(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 6, 2, 7, 4)
    requests = take(ring)
    requests[1].finish()
    ring.publish()
    # Finished, but the driver has not seen it.
    requests[3].finish()
    del ring
    ring = restart(guest, record)
    assert [found.head for found in ring.recovered] == [6, 7, 4]
    assert ring.recovered[0] == Recovered(6, 0, 0)
    assert (ring.outstanding, ring.in_flight, ring.next_avail, ring.next_used) == (3, 0, 4, 1)
    assert ring.pending and ring.arm()
    submit(guest, 1)
    assert heads(ring) == [6, 7, 4, 1]
    assert guest.reap() == [(2, 0), (6, 0), (7, 0), (4, 0), (1, 0)]
    assert (ring.outstanding, ring.pending, record.live) == (0, False, [])
    # The counter goes on, too.
    assert record[1].counter == 4


def test_recovered_requests_wait_for_their_turn(guest: Guest, record: Record) -> None:
    submit(guest, 6, 2, 7)
    take(start(guest, record))
    ring = restart(guest, record)
    submit(guest, 0)
    seen: list[int] = []
    for left in (2, 1, 0):
        assert ring.drain(lambda request: seen.append(request.head), fail, 1) == 1
        assert ring.outstanding == left and ring.pending and ring.arm()
    assert ring.drain(lambda request: seen.append(request.head), fail, 10) == 1
    assert seen == [6, 2, 7, 0] and not ring.arm()


def test_a_recovered_head_is_in_flight(guest: Guest, record: Record) -> None:
    submit(guest, 6)
    take(start(guest, record))
    ring = restart(guest, record)
    submit(guest, 6)
    with pytest.raises(RingError, match="in flight already"):
        take(ring)


@pytest.mark.parametrize("features", [F_INDIRECT, F_INDIRECT | F_EVENT_IDX])
@pytest.mark.parametrize("live", [False, True])
def test_d3_the_first_drain_after_a_death_notifies_the_driver_once(
    guest: Guest, record: Record, features: int, live: bool
) -> None:
    ring = start(guest, record, features=features)
    submit(guest, 0)
    if live:
        take(ring)
    else:
        heads(ring)
    guest.calls()
    guest.set_avail_flags(1)
    guest.set_used_event(100)
    ring = guest.ring(features, record=record.map())
    assert guest.calls() == 0
    held = take(ring)
    assert (guest.calls(), len(held)) == (1, live)
    take(ring)
    assert guest.calls() == 0


def test_d5_kicks_are_asked_for_again(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    ring.disarm()
    assert guest.used_flags == 1
    restart(guest, record)
    assert guest.used_flags == 0


@pytest.mark.parametrize("published", [1, 2, 3])
def test_d6_a_death_between_the_used_index_and_the_marks(
    guest: Guest, record: Record, published: int
) -> None:
    """The state of every crash from C3 to C5, made by hand."""
    for cleared in range(published + 1):
        with Guest() as guest, Record(8) as record:
            ring = start(guest, record)
            submit(guest, 5, 3, 1, 7)
            requests = take(ring)
            marks = [record[head] for head in range(8)]
            for request in requests[:published]:
                request.finish()
            ring.publish()
            record.set_header(used_idx=0)
            for head in (5, 3, 1)[cleared:published]:
                record.set_entry(head, inflight=marks[head].inflight)
            ring = restart(guest, record)
            assert heads(ring) == [5, 3, 1, 7][published:]
            assert record.header.used_idx == 4
            assert [head for head, _ in guest.reap()] == [5, 3, 1, 7]


def test_recovery_twice_is_recovery_once(guest: Guest, record: Record) -> None:
    submit(guest, 5, 3, 1)
    ring = start(guest, record)
    requests = take(ring)
    requests[0].finish()
    ring.publish()
    first = restart(guest, record)
    before = bytes(record.bytes)
    second = restart(guest, record)
    assert bytes(record.bytes) == before
    assert first.recovered == second.recovered
    assert heads(second) == [3, 1]


def test_indices_wrap(record: Record) -> None:
    with Guest(8, base=65534) as guest:
        ring = start(guest, record, base=65534)
        submit(guest, 0, 1, 2, 3)
        requests = take(ring)
        for request in requests[:3]:
            request.finish()
        ring.publish()
        record.set_header(used_idx=65534)
        ring = restart(guest, record)
        assert (ring.next_avail, ring.next_used, record.header.used_idx) == (2, 1, 1)
        assert heads(ring) == [3]


def test_a_used_index_that_is_behind_for_good_stays_so(guest: Guest, record: Record) -> None:
    """A back-end before us has lost three requests, and the front-end starts behind them."""
    submit(guest, 0, 1, 2)
    guest.set_avail_idx(3)
    ring = start(guest, record, base=3)
    submit(guest, 3, 4)
    (first, _) = take(ring)
    first.finish()
    ring.publish()
    ring = restart(guest, record)
    assert (ring.next_avail, ring.next_used) == (5, 1)
    assert heads(ring) == [4]
    assert ring.stop() == 5
    assert restart(guest, record).next_avail == 5
    assert start(guest, record, base=4).next_avail == 4


def test_a_chain_that_changed_is_read_anew(guest: Guest, record: Record) -> None:
    submit(guest, 5, 3)
    take(start(guest, record))
    guest.write(DATA, b"new")
    guest.chain(5, [(DATA, 3, False)])
    guest.set_desc(3, HOLE, 8)
    ring = restart(guest, record)
    seen: list[bytes] = []
    with pytest.raises(RingError, match="buffer is not guest memory") as caught:
        ring.drain(lambda request: seen.append(request.read()), fail, 10)
    assert (seen, caught.value.index, ring.outstanding) == ([b"new"], 2, 0)
    assert guest.reap() == [(5, 0)]
    # The one that cannot be read stays for whoever repairs the ring.
    assert record.live == [3] and ring.stop() == 2 and record.header.version == 1
    guest.chain(3, [(DATA, 3, False)])
    assert heads(restart(guest, record)) == [3]


# What is not run again.


def die(guest: Guest, record: Record, resubmit: str = "run") -> SplitRing:
    """A worker takes up the ring and dies inside `handle` of the first request.

    Out of its handler the record is copied and put back: SIGKILL leaves nothing else behind.
    """
    ring = restart(guest, record)
    ring.resubmit = resubmit  # type: ignore[assignment]
    left: list[tuple[bytes, bytes]] = []

    def handle(request: Request) -> None:
        left.append((guest.bytes[:], record.bytes[:]))
        ring.stop()

    ring.drain(handle, fail, 1)
    guest.bytes[:], record.bytes[:] = left[0]
    return restart(guest, record)


def test_d11_the_third_death_over_a_request_is_its_last(guest: Guest, record: Record) -> None:
    start(guest, record)
    submit(guest, 2, 4)
    for deaths in range(1, POISON_ATTEMPTS + 1):
        ring = die(guest, record)
        assert ring.recovered == (Recovered(2, deaths, 0),)
    skipped: list[tuple[int, str, int]] = []

    def on_skip(request: Request, reason: str, attempts: int) -> None:
        skipped.append((request.head, reason, attempts))
        request.write(b"E")

    ring.on_skip = on_skip
    assert heads(ring) == [4]
    assert skipped == [(2, "poison", 3)]
    assert guest.reap() == [(2, 1), (4, 0)]


def test_deaths_are_counted_for_the_request_that_was_run(guest: Guest, record: Record) -> None:
    """Those before it, done and not shown, and those deferred, have done nothing."""
    ring = start(guest, record)
    submit(guest, 0, 1, 2, 3)
    (_, second, *_) = take(ring)
    second.finish()
    submit(guest, 5)
    for deaths in range(1, 4):
        ring = die(guest, record)
        assert [found.attempts for found in ring.recovered] == [deaths, 0, 0, 0]


def test_what_is_done_before_a_suspect_is_published_before_it(guest: Guest, record: Record) -> None:
    submit(guest, 0, 1, 2)
    take(start(guest, record))
    record.set_entry(2, attempts=2)
    ring = restart(guest, record)
    seen: list[tuple[int, int]] = []
    ring.drain(lambda request: seen.append((request.head, guest.used_idx)), fail, 10)
    # The first one's answer may be shown before the second as well, if it took long.
    assert [head for head, _ in seen] == [0, 1, 2]
    assert seen[2] == (2, 2)


@pytest.mark.parametrize("resubmit", ["drop", "fail"])
def test_d7_a_request_whose_effect_may_have_happened_is_not_run_twice(
    guest: Guest, record: Record, resubmit: str
) -> None:
    start(guest, record)
    submit(guest, 2, 4)
    ring = die(guest, record, resubmit)
    assert ring.recovered == (Recovered(2, 1, 1),)
    skipped: list[tuple[int, str, int]] = []
    ring.on_skip = lambda request, reason, attempts: skipped.append(
        (request.head, reason, attempts)
    )
    assert heads(ring, resubmit=resubmit) == [4]
    assert skipped == [(2, resubmit, 1)]
    assert guest.reap() == [(2, 0), (4, 0)]


def test_the_stage_means_nothing_to_a_device_that_runs_again(guest: Guest, record: Record) -> None:
    submit(guest, 2)
    take(start(guest, record))
    record.set_entry(2, stage=1)
    assert heads(restart(guest, record)) == [2]


def test_without_a_callback_a_skipped_request_is_completed_with_nothing(
    guest: Guest, record: Record
) -> None:
    submit(guest, 2)
    take(start(guest, record))
    record.set_entry(2, attempts=255)
    assert heads(restart(guest, record)) == []
    assert guest.reap() == [(2, 0)]


def test_a_callback_may_fail_or_defer(guest: Guest, record: Record) -> None:
    submit(guest, 2, 4)
    take(start(guest, record))
    record.set_entry(2, attempts=3)
    record.set_entry(4, attempts=4)
    ring = restart(guest, record)
    held: list[Request] = []
    errors: list[tuple[int, str]] = []

    def on_skip(request: Request, reason: str, attempts: int) -> None:
        if request.head == 2:
            raise KeyError(attempts)
        request.defer()
        held.append(request)

    def on_error(request: Request, error: BaseException) -> None:
        errors.append((request.head, repr(error)))

    ring.on_skip = on_skip
    ring.drain(lambda _: None, on_error, 10)
    assert errors == [(2, "KeyError(3)")] and guest.reap() == [(2, 0)]
    held[0].finish(5)
    ring.publish()
    assert guest.reap() == [(4, 5)] and record.live == []


# Stopping.


def test_an_idle_ring_leaves_a_clean_record(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 0, 1)
    heads(ring)
    assert (record.map().version, ring.stop()) == (1, 2)
    assert record.map().version == 0
    # The front-end's base counts; and without one, where the ring stopped.
    assert guest.ring(base=1, record=record.map()).next_avail == 1
    assert record.header.version == 1


def test_a_worker_that_died_after_the_stop_leaves_the_position(
    guest: Guest, record: Record
) -> None:
    ring = start(guest, record)
    submit(guest, 0, 1)
    heads(ring)
    ring.stop()
    ring = restart(guest, record)
    assert (ring.next_avail, ring.recovered, ring.stop()) == (2, (), 2)


def test_a_ring_with_work_left_keeps_its_record(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 0, 1, 2)
    requests = take(ring)
    requests[0].finish()
    assert ring.stop() == 3
    # Finished and not published is not completed.
    assert record.live == [0, 1, 2] and record.header.version == 1
    ring = restart(guest, record)
    take(ring)
    assert ring.outstanding == 3 and ring.stop() == 3
    assert ring.kept == 3
    assert heads(restart(guest, record)) == [0, 1, 2]


def test_a_record_can_be_kept(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    submit(guest, 0)
    heads(ring)
    assert ring.stop(keep=True) == 1 and record.header.version == 1
    assert ring.stop() == 1 and record.header.version == 1
    assert restart(guest, record).next_avail == 1


def test_a_broken_ring_does_not_touch_its_record(guest: Guest, record: Record) -> None:
    ring = start(guest, record)
    guest.set_desc(0, DATA, 8, NEXT, 99)
    guest.offer(0)
    with pytest.raises(RingError, match="outside the table"):
        take(ring)
    before = bytes(record.bytes)
    ring.stop()
    ring.publish()
    assert bytes(record.bytes) == before and record.header.version == 1


def test_a_stopped_ring_leaves_the_record_to_the_next(guest: Guest, record: Record) -> None:
    submit(guest, 0, 1)
    ring = start(guest, record)
    old = take(ring)
    ring.stop()
    new = restart(guest, record)
    take(new)
    before = bytes(record.bytes)
    for request in old:
        assert request.finished
    ring.publish()
    del ring, old
    gc.collect()
    assert bytes(record.bytes) == before and new.in_flight == 2


# The word that says what the device is at.


def test_d13_busy_names_the_request_and_the_heartbeat_counts(guest: Guest) -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    ring = guest.ring(counters=counters)
    submit(guest, 7, 0)
    seen: list[tuple[int, int]] = []

    def handle(request: Request) -> None:
        now = counters.snapshot()
        seen.append((now.busy, now.heartbeat))
        if request.head == 0:
            raise KeyError

    ring.drain(handle, lambda request, error: None, 10)
    assert seen == [(8, 0), (1, 1)]
    assert counters.snapshot()[7:9] == (2, 0)


def test_a_new_ring_is_not_busy(guest: Guest) -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    ring = guest.ring(counters=counters)
    submit(guest, 7)
    left: list[int] = []

    def handle(request: Request) -> None:
        guest.ring(counters=counters)
        left.append(counters.snapshot().busy)

    ring.drain(handle, fail, 1)
    assert left == [0]
