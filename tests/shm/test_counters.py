"""Counters: what is counted, where it lies, and that a snapshot needs no help of the writer."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest

from tests.shm.guest import DATA, Guest, fail, take
from vuproc.shm.counter_table import WORDS, CountersSnapshot
from vuproc.shm.counters import BLOCK_SIZE, BUCKETS, QueueCounters, block_bytes
from vuproc.shm.request import Request

LONG_NS = 30_000_000_000


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest() as made:
        yield made


def test_a_request_is_counted_with_its_bytes_and_time(guest: Guest) -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    ring = guest.ring(counters=counters)
    guest.submit(0, [(DATA, 16, False), (DATA, 100, True)])
    guest.submit(2, [(DATA, 16, False), (DATA, 100, True)])

    def handle(request: Request) -> None:
        request.read(10)
        request.write(b"x" * 30)

    ring.drain(handle, fail, 10)
    seen = counters.snapshot()
    assert (seen.requests, seen.bytes_read, seen.bytes_written) == (2, 20, 60)
    assert (seen.errors, seen.kicks, seen.call_errors) == (0, 0, 0)
    # Two if the first one took long.
    assert 1 <= seen.calls <= 2
    assert sum(seen.latency) == 2 and len(seen.latency) == BUCKETS
    assert 0 < seen.latency_total_ns < 1_000_000_000


def test_a_deferred_request_is_counted_when_it_is_finished(guest: Guest) -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    ring = guest.ring(counters=counters)
    guest.submit(0, [(DATA, 100, True)])
    (request,) = take(ring)
    assert counters.snapshot().requests == 0
    request.finish(7)
    assert counters.snapshot().requests == 1
    assert counters.snapshot().bytes_written == 7


def test_each_queue_has_its_own_block() -> None:
    buffer = bytearray(block_bytes(3))
    each = [QueueCounters(buffer, queue) for queue in range(3)]
    assert [counters.queue for counters in each] == [0, 1, 2]
    each[1].count_kick()
    each[2].beat()
    each[2].beat()
    snapshots = [counters.snapshot() for counters in each]
    assert [s.kicks for s in snapshots] == [0, 1, 0]
    assert [s.heartbeat for s in snapshots] == [0, 0, 2]
    each[2].clear()
    assert each[2].snapshot() == each[0].snapshot()
    assert each[1].snapshot().kicks == 1


def test_a_command_ends_the_turn_after_the_request_that_is_served(guest: Guest) -> None:
    buffer = bytearray(BLOCK_SIZE)
    ours, masters = QueueCounters(buffer, 0), QueueCounters(buffer, 0)
    ring = guest.ring(counters=ours)
    for head in range(6):
        guest.submit(head, [(DATA, 8, True)])

    def handle(request: Request) -> None:
        if request.head == 2:
            masters.count_command()

    assert ring.drain(handle, fail, 10) == 3
    assert [head for head, _ in guest.reap()] == [0, 1, 2]
    assert ring.drain(handle, fail, 10) == 1
    ours.note_commands()
    ours.note_command()
    assert ring.drain(handle, fail, 10) == 1
    ours.note_commands()
    assert ring.drain(handle, fail, 10) == 1
    masters.count_command()
    began = time.monotonic_ns()
    assert ring.spin(LONG_NS) is False
    assert time.monotonic_ns() - began < LONG_NS
    assert ring.arm() is False


def test_the_block_has_the_documented_layout() -> None:
    buffer = bytearray(block_bytes(2))
    words = [*range(1, 9), *range(100, 100 + BUCKETS), 99, 9]
    struct.pack_into(f"={len(words)}Q", buffer, BLOCK_SIZE, *words)
    struct.pack_into("=7Q", buffer, BLOCK_SIZE + 8 * 54, *range(12, 19))
    assert BLOCK_SIZE == 512
    QueueCounters(buffer, 0).count_command()
    assert struct.unpack_from("=Q", buffer, 8 * (len(words) + 1)) == (1,)
    QueueCounters(buffer, 1).count_hook()
    assert struct.unpack_from("=Q", buffer, BLOCK_SIZE + 8 * (len(words) + 2)) == (1,)
    assert QueueCounters(buffer, 1).snapshot() == CountersSnapshot(
        requests=1,
        bytes_read=2,
        bytes_written=3,
        errors=4,
        kicks=5,
        calls=6,
        call_errors=7,
        heartbeat=8,
        busy=9,
        hooks=1,
        latency_total_ns=99,
        dropped=12,
        skipped=13,
        restarts=14,
        stalls=15,
        stall_total_ns=16,
        stall_last_ns=17,
        breaks=18,
        latency=tuple(range(100, 100 + BUCKETS)),
    )


NOTHING = (0,) * len(WORDS)


def test_what_the_master_counts_of_a_queue() -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    counters.count_restart()
    counters.count_stall(30)
    counters.count_stall(12)
    counters.count_break()
    seen = counters.snapshot()
    assert (seen.restarts, seen.stalls, seen.stall_total_ns, seen.stall_last_ns) == (1, 2, 42, 12)
    assert seen.breaks == 1


def test_counts_are_added_and_nothing_else() -> None:
    words = range(1, 1 + BLOCK_SIZE // 8)
    one, other = (QueueCounters(bytearray(struct.pack("=64Q", *words)), 0) for _ in range(2))
    before = one.snapshot()
    one.add_counts(other)
    after = one.snapshot()
    for name, word in WORDS.items():
        once = getattr(before, name)
        assert getattr(after, name) == (2 * once if word.counter else once), name
    assert after.latency == tuple(2 * count for count in before.latency)


def test_percentiles_are_upper_bounds_of_buckets() -> None:
    counts = [0] * BUCKETS
    counts[10], counts[12] = 98, 2
    snapshot = CountersSnapshot._make([*NOTHING, tuple(counts)])
    assert snapshot.percentile(0.5) == 1 << 11
    assert snapshot.percentile(0.98) == 1 << 11
    assert snapshot.percentile(0.99) == 1 << 13
    nothing = CountersSnapshot._make([*NOTHING, (0,) * BUCKETS])
    assert nothing.percentile(0.5) == 0


@pytest.mark.parametrize("queue", [-1, 2, 1 << 60])
def test_a_block_outside_the_buffer_is_refused(queue: int) -> None:
    with pytest.raises(ValueError, match="no block"):
        QueueCounters(bytearray(block_bytes(2)), queue)


def test_a_buffer_that_cannot_hold_words_is_refused() -> None:
    with pytest.raises(BufferError):
        QueueCounters(bytes(BLOCK_SIZE), 0)
    with pytest.raises(ValueError, match="aligned"):
        QueueCounters(memoryview(bytearray(BLOCK_SIZE + 8))[1:], 0)


def test_released_counters_let_go_of_the_buffer_and_count_on(guest: Guest) -> None:
    buffer = bytearray(BLOCK_SIZE)
    counters = QueueCounters(buffer, 0)
    with pytest.raises(BufferError):
        buffer.append(0)
    counters.release()
    counters.release()
    buffer.clear()
    ring = guest.ring(counters=counters)
    guest.submit(0, [(DATA, 8, True)])
    ring.drain(lambda _: None, fail, 1)
    assert counters.snapshot().requests == 1
