"""The last requests of a queue, in memory that outlives whoever served them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.shm.guest import DATA, Guest, fail, take
from tests.shm.packed_guest import PackedGuest
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.packed import PackedRing
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing
from vuproc.shm.trace_layout import ENTRY, ENTRY_BYTES, HEADER, Traced, read_trace, trace_bytes

ROOM = 4
BUDGET = 256
IN = 2048
"""Where the writable half of a head's page begins."""


def counters_with(memory: bytearray) -> QueueCounters:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    counters.trace(memory)
    return counters


def answer(request: Request) -> None:
    request.write(b"ok")


class Lane:
    """A ring of either layout, and its driver."""

    def __init__(self, guest: Guest, memory: bytearray) -> None:
        self.guest = guest
        made = guest.packed if isinstance(guest, PackedGuest) else guest.ring
        self.ring: SplitRing | PackedRing = made(counters=counters_with(memory))

    def offer(self, number: int, content: bytes) -> None:
        """A request of two buffers; its number is below 4."""
        at = DATA + 4096 * number
        parts = [(at + IN, 64, True)]
        if content:
            self.guest.write(at, content)
            parts.insert(0, (at, len(content), False))
        if isinstance(self.guest, PackedGuest):
            self.guest.send(number, parts)
        else:
            self.guest.submit(2 * number, parts)

    def serve(self, number: int, content: bytes) -> None:
        self.offer(number, content)
        assert self.ring.drain(answer, fail, BUDGET) == 1
        if isinstance(self.guest, PackedGuest):
            self.guest.back_again()
        else:
            self.guest.reap()


@pytest.fixture
def memory() -> bytearray:
    return bytearray(trace_bytes(ROOM))


@pytest.fixture(params=[Guest, PackedGuest], ids=["split", "packed"])
def lane(request: pytest.FixtureRequest, memory: bytearray) -> Iterator[Lane]:
    with request.param(8) as guest:
        yield Lane(guest, memory)


def content(number: int) -> bytes:
    return bytes([number]) * 16 + b"not shown"


def test_a_request_is_noted_with_all_that_is_known(lane: Lane, memory: bytearray) -> None:
    lane.serve(1, content(7))
    workers, (entry,) = read_trace(memory)
    assert workers == 1
    assert entry._replace(began=0, ended=0, head=0) == Traced(
        order=1,
        began=0,
        ended=0,
        head=0,
        worker=1,
        readable=25,
        writable=64,
        written=2,
        again=0,
        first=bytes([7]) * 16,
    )
    assert 0 < entry.began <= entry.ended


def test_one_that_is_in_flight_has_no_end(lane: Lane, memory: bytearray) -> None:
    lane.offer(0, content(1))
    (request,) = take(lane.ring)
    assert [entry.ended for entry in read_trace(memory)[1]] == [0]
    request.write(b"abc")
    request.finish()
    (entry,) = read_trace(memory)[1]
    assert entry.ended >= entry.began and entry.written == 3


def test_the_last_ones_are_kept_in_order(lane: Lane, memory: bytearray) -> None:
    for number in range(11):
        lane.serve(number % 4, content(number))
    _, entries = read_trace(memory)
    assert [entry.order for entry in entries] == [8, 9, 10, 11]
    assert [entry.first[0] for entry in entries] == [7, 8, 9, 10]
    assert all(entry.ended for entry in entries)


def test_more_in_flight_than_there_is_room_for(memory: bytearray) -> None:
    """One that was pushed out ends without touching whoever has its place."""
    small = bytearray(trace_bytes(2))
    with Guest(8) as guest:
        lane = Lane(guest, small)
        for number in range(4):
            lane.offer(number, content(number))
        requests = take(lane.ring)
        requests[0].finish()
        requests[1].finish()
        entries = read_trace(small)[1]
        assert [(entry.order, entry.ended) for entry in entries] == [(3, 0), (4, 0)]
        requests[3].finish()
        entries = read_trace(small)[1]
        assert [bool(entry.ended) for entry in entries] == [False, True]
        requests[2].finish()


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 15])
def test_a_short_request_shows_nothing_of_its_content(
    lane: Lane, memory: bytearray, data: bytes
) -> None:
    lane.serve(0, data)
    (entry,) = read_trace(memory)[1]
    assert (entry.readable, entry.first) == (len(data), bytes(16))


def test_the_next_worker_goes_on_and_is_another(memory: bytearray) -> None:
    with Guest(8) as guest:
        lane = Lane(guest, memory)
        lane.serve(0, content(1))
        lane.offer(1, content(2))
        take(lane.ring)
        lane.ring.stop(keep=True)
        successor = Lane(guest, memory)
        successor.offer(2, content(3))
        successor.ring.drain(answer, fail, BUDGET)
        workers, entries = read_trace(memory)
        assert workers == 2
        assert [entry.worker for entry in entries][:2] == [1, 1]
        assert entries[-1].worker == 2 and entries[-1].order == len(entries)
        assert entries[1].ended == 0


def test_requests_together_are_traced_one_by_one(lane: Lane, memory: bytearray) -> None:
    for number in range(3):
        lane.offer(number, content(number))
    assert lane.ring.drain_batch(lambda batch: None, fail, BUDGET) == 3
    _, entries = read_trace(memory)
    assert [(entry.first[0], bool(entry.ended)) for entry in entries] == [
        (0, True),
        (1, True),
        (2, True),
    ]


@pytest.mark.parametrize("size", [0, 63, 64, 128 - 1, trace_bytes(3), trace_bytes(5)])
def test_memory_of_another_size_is_refused(size: int) -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    memory = bytearray(size)
    with pytest.raises(ValueError, match="no power of two"):
        counters.trace(memory)
    memory.extend(b"x")  # it is not held


def test_a_queue_has_one_trace(memory: bytearray) -> None:
    counters = counters_with(memory)
    with pytest.raises(ValueError, match="already"):
        counters.trace(memory)


def test_an_entry_that_is_half_written_is_left_out(lane: Lane, memory: bytearray) -> None:
    for number in range(3):
        lane.serve(number, content(number))
    ENTRY.pack_into(memory, ENTRY_BYTES * 2, *(0,) * 9, bytes(16))
    assert [entry.order for entry in read_trace(memory)[1]] == [1, 3]


@pytest.mark.parametrize("header", [(0, 9, 1), (1 << 60, 9, 1), (8, 9, 1), (4097, 1, 1)])
def test_a_header_that_makes_no_sense_gives_nothing(
    header: tuple[int, int, int], memory: bytearray
) -> None:
    HEADER.pack_into(memory, 0, *header)
    assert read_trace(memory) == (0, [])
