"""Requests by the batch: verbs that do to all what those of a request do to one, and their ends."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shm.guest import DATA, PARTS, Guest, fail
from tests.shm.record import Record, restart, start
from vuproc.errors import RequestFinished, RingError
from vuproc.shm.batch import Batch
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.memory import GuestMemory
from vuproc.shm.request import Request
from vuproc.shm.ring import Ring

SIZE = 64
ROOM = 256
"""Bytes of guest memory for each request of these tests."""
FILE = bytes(range(256)) * 16


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(SIZE) as made:
        yield made


@pytest.fixture
def record() -> Iterator[Record]:
    with Record(SIZE) as made:
        yield made


@pytest.fixture
def file() -> Iterator[int]:
    made = os.memfd_create("file", os.MFD_CLOEXEC)
    os.pwrite(made, FILE, 0)
    yield made
    os.close(made)


def offer(guest: Guest, count: int, out: int = 16, in_: int = 17) -> None:
    """Requests of head 0, 2, 4 ...: `out` bytes that say which it is, and room for `in_`."""
    for number in range(count):
        guest.write(DATA + ROOM * number, bytes([number]) * out + bytes(in_))
        parts = [(DATA + ROOM * number, out, False), (DATA + ROOM * number + out, in_, True)]
        guest.submit(2 * number, [part for part in parts if part[1]])


def batches(ring: Ring, serve: Callable[[Batch], object], budget: int = 1000) -> list[int]:
    """Drain; how many there were in each call."""
    sizes: list[int] = []

    def handle(batch: Batch) -> object:
        sizes.append(len(batch))
        return serve(batch)

    ring.drain_batch(handle, fail, budget)
    return sizes


def test_all_that_has_come_is_one_call(guest: Guest) -> None:
    offer(guest, 5)
    ring = guest.ring()
    assert batches(ring, lambda batch: batch.put(-1, b"\7")) == [5]
    assert guest.reap() == [(2 * number, 1) for number in range(5)]
    assert guest.read(DATA + ROOM * 3 + 16 + 16, 1) == b"\7"
    assert batches(ring, lambda batch: None) == []


def test_a_budget_ends_a_batch(guest: Guest) -> None:
    offer(guest, 5)
    ring = guest.ring()
    assert batches(ring, lambda batch: None, 3) == [3]
    assert batches(ring, lambda batch: None, 3) == [2]


def test_it_is_a_sequence_of_requests(guest: Guest) -> None:
    offer(guest, 4)

    def serve(batch: Batch) -> None:
        assert [request.head for request in batch] == [0, 2, 4, 6]
        assert batch[1].head == 2 and batch[-1].head == 6
        assert [request.head for request in batch[1:3]] == [2, 4]
        assert [request.head for request in batch.select([3, 0])] == [6, 0]
        for mask in (b"\0\1\0\1", [0, 1, "", 2], array("b", [0, 1, 0, 1])):
            assert [request.head for request in batch.where(mask)] == [2, 6]
        assert repr(batch) == "<Batch of 4 requests>"
        assert len(batch[:0]) == 0 and len(batch[:0].read(4)) == 0
        batch[:0].finish()

    assert batches(guest.ring(), serve) == [4]


@pytest.mark.parametrize(("format", "size"), [("B", 1), ("H", 2), ("I", 4), ("Q", 8)])
def test_a_column_is_its_readers_own(guest: Guest, format: str, size: int) -> None:
    offer(guest, 3)
    kept: list[memoryview] = []

    def serve(batch: Batch) -> None:
        kept.extend((batch.column(0, format), batch.writable, batch[:0].column(0, format)))

    batches(guest.ring(), serve)
    column, writable, empty = kept
    assert (column.format, column.itemsize, column.shape) == (format, size, (3,))
    assert column == array(format, [int.from_bytes(bytes([n]) * size, "little") for n in range(3)])
    assert writable == array("Q", [17] * 3) and writable.contiguous
    assert bytes(column[::2]) == bytes(size) + bytes([2]) * size
    column[1] = 7
    assert column.tolist()[1] == 7 and len(empty) == 0


def test_columns_of_what_was_sent(guest: Guest) -> None:
    offer(guest, 3, out=10, in_=5)

    def serve(batch: Batch) -> None:
        assert list(batch.readable) == [10] * 3 and list(batch.writable) == [5] * 3
        assert batch.read(4) == b"".join(bytes([n]) * 4 for n in range(3))
        assert list(batch.readable) == [6] * 3
        # What is not there is zeros.
        assert batch.read(8) == b"".join(bytes([n]) * 6 + b"\0\0" for n in range(3))
        assert [bytes(frame) for frame in batch.frames(7)] == [bytes([n]) * 3 for n in range(3)]
        batch.write(b"aabbcc")
        assert list(batch.writable) == [3] * 3
        batch.put_rows(-1, b"xyz")

    batches(guest.ring(), serve)
    assert guest.reap() == [(0, 3), (2, 3), (4, 3)]
    assert guest.read(DATA + ROOM + 10, 5) == b"bb\0\0y"


def test_transfers_tell_of_each_request(guest: Guest, file: int) -> None:
    offer(guest, 4)
    offsets = array("q", [0, 100, len(FILE) - 4, len(FILE)])

    def read(batch: Batch) -> None:
        assert list(batch.preadv(file, offsets, 16)) == [16, 16, 4, 0]

    ring = guest.ring()
    batches(ring, read)
    assert [length for _, length in guest.reap()] == [16, 16, 4, 0]
    assert guest.read(DATA + ROOM + 16, 16) == FILE[100:116]
    offer(guest, 4)
    wrong = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def write(batch: Batch) -> None:
        assert list(batch[:2].pwritev(file, [0, 16], [16, 8])) == [16, 8]
        assert list(batch.readable) == [0, 8, 16, 16]
        assert list(batch[2:].pwritev(wrong, 0, 16)) == [-errno.EBADF] * 2
        assert list(batch.readable) == [0, 8, 16, 16]

    batches(ring, write)
    os.close(wrong)
    assert os.pread(file, 32, 0) == bytes(16) + bytes([1]) * 8 + FILE[24:32]


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (lambda batch, _: batch.write(bytes(3 * 18)), "18 bytes for head 0, of 17 writable"),
        (lambda batch, _: batch.write(bytes(4)), "4 bytes are no whole rows for 3 requests"),
        (lambda batch, _: batch.put(17, b"x"), "1 bytes at 17 of head 0, which has 17"),
        (lambda batch, _: batch.put(-18, b""), "0 bytes at -18 of head 0"),
        (lambda batch, _: batch.put_rows(0, b"ab"), "no whole rows"),
        (lambda batch, _: batch.finish([1, 2, 18]), "18 written of 17 writable bytes of head 4"),
        (lambda batch, _: batch.finish(-1), "-1 written"),
        (lambda batch, _: batch.finish([1, 2]), "2 used lengths for 3 requests"),
        (lambda batch, _: batch.read(1 << 24), "at most 16777216 in all"),
        (lambda batch, _: batch.read(-1), "-1 bytes of each"),
        (lambda batch, _: batch.read((1 << 64) // 3 + 1 >> 1), "at most 16777216 in all"),
        (lambda batch, file: batch.preadv(file, 0, [1, 2, 18]), "18 bytes wanted of 17 of head 4"),
        (lambda batch, file: batch.pwritev(file, 0, -1), "-1 bytes wanted"),
        (lambda batch, file: batch.preadv(file, array("d", [1] * 3), 1), "offsets are integers"),
        (lambda batch, file: batch.preadv(file, 0, 1, spare=17), "1 bytes wanted of 0 of head 0"),
        (lambda batch, file: batch.preadv(file, 0, 1, unit=0), "a unit of 0 bytes"),
        (lambda batch, file: batch.preadv(file, 0, 1, within=1 << 63), "a file of"),
        (lambda batch, _: batch.column(0, "q"), "one of B, H, I and Q"),
        (lambda batch, _: batch.column(-1, "B"), "no column"),
        (lambda batch, _: batch.skip(-1), "backwards"),
        (lambda batch, _: batch.where([1]), "1 in a mask for 3 requests"),
        (lambda batch, _: batch.where(array("d", [1] * 3)), "integers"),
        (lambda batch, _: batch.select([0, -3]), "twice"),
    ],
)
def test_what_does_not_fit_one_is_done_to_none(
    guest: Guest, file: int, verb: Callable[[Batch, int], Any], message: str
) -> None:
    offer(guest, 3)

    def serve(batch: Batch) -> None:
        with pytest.raises(ValueError, match=message):
            verb(batch, file)
        assert list(batch.readable) == [16] * 3 and list(batch.writable) == [17] * 3
        assert not any(request.finished or request.written for request in batch)

    batches(guest.ring(), serve)
    assert [length for _, length in guest.reap()] == [0] * 3


def test_what_is_no_number_of_a_file_s_is_refused(guest: Guest, file: int) -> None:
    offer(guest, 1)

    def serve(batch: Batch) -> None:
        for offsets in ([1 << 64], 1 << 63):
            with pytest.raises(OverflowError):
                batch.preadv(file, offsets, 1)
        with pytest.raises(TypeError):
            batch.preadv(file, ["one"], 1)  # type: ignore[list-item]
        with pytest.raises(IndexError):
            batch.select([1])
        with pytest.raises(TypeError):
            batch.where(1)  # type: ignore[arg-type]

    batches(guest.ring(), serve)


def test_a_place_that_a_file_has_not_is_an_error_of_its_request(guest: Guest, file: int) -> None:
    offer(guest, 6)
    places = array("Q", [0, 7, 8, 1 << 54, 1 << 63, (1 << 64) - 1])

    def serve(batch: Batch) -> None:
        moved = batch.preadv(file, places, unit=512, spare=1, within=4096)
        assert list(moved) == [16, 16, *[-errno.EINVAL] * 4]
        assert list(batch.writable) == [1, 1, 17, 17, 17, 17]
        moved = batch.pwritev(file, [4080, 4081, -1, 0, 0, 0], within=4096)
        assert list(moved) == [16, -errno.EINVAL, -errno.EINVAL, 16, 16, 16]
        assert list(batch.readable) == [0, 16, 16, 0, 0, 0]

    batches(guest.ring(), serve)
    assert os.fstat(file).st_size == 4096


def test_fields_as_columns(guest: Guest) -> None:
    for number in range(4):
        at = DATA + ROOM * number
        guest.write(at, bytes([number, 1, 2, 3, 4, 5, 6, 7, 8 + number % 2]))
        # In pieces, and the last is a byte short.
        last = 5 if number == 3 else 6
        guest.submit(4 * number, [(at, 3, False), (at + 3, last, False), (at + 64, 2, True)])

    def serve(batch: Batch) -> None:
        batch.skip(7)
        assert list(batch.column(0, "B")) == [0, 1, 2, 3]
        assert list(batch.column(1, "H")) == [0x201] * 4
        assert list(batch.column(2, "I")) == [0x05040302] * 4
        assert list(batch.column(1, "Q")) == [0x0807060504030201, 0x0907060504030201] + [
            0x0807060504030201,
            0,
        ]
        assert list(batch.readable) == [2, 2, 2, 1]
        kinds = batch.column(8, "B")
        assert [request.head for request in batch.where(kinds, 8)] == [0, 8]
        assert [request.head for request in batch.where(kinds)] == [0, 4, 8]
        for mask in (array("q", kinds), array("h", kinds), list(kinds), bytes(kinds)):
            assert [request.head for request in batch.where(mask, 9)] == [4]
        assert [request.head for request in batch.where(array("b", [-1, 0, 1, -1]), -1)] == [0, 12]

    batches(guest.ring(), serve)


def test_finished_ones_are_refused_and_the_rest_is_untouched(guest: Guest, file: int) -> None:
    offer(guest, 3)

    def serve(batch: Batch) -> None:
        batch[1].finish(0)
        for verb in (
            lambda: batch.read(1),
            lambda: batch.frames(),
            lambda: batch.write(b"abc"),
            lambda: batch.put(0, b"a"),
            lambda: batch.preadv(file, 0, 1),
            lambda: batch.finish(),
        ):
            with pytest.raises(RequestFinished):
                verb()
        batch.select([0, 2]).finish([3, 4])

    batches(guest.ring(), serve)
    assert guest.reap() == [(2, 0), (0, 3), (4, 4)]


class Stop(Exception):
    """Raised by a handler."""


def test_an_exception_fails_those_that_were_left(guest: Guest) -> None:
    offer(guest, 5)
    failed: list[tuple[int, BaseException]] = []
    kept: list[Request] = []

    def serve(batch: Batch) -> None:
        batch[0].finish(1)
        batch[1].defer()
        kept.append(batch[1])
        batch[2].release()
        raise Stop

    ring = guest.ring()
    ring.drain_batch(serve, lambda request, error: failed.append((request.head, error)), 100)
    assert [head for head, _ in failed] == [6, 8]
    assert all(isinstance(error, Stop) for _, error in failed)
    assert guest.reap() == [(0, 1), (6, 0), (8, 0)]
    assert ring.in_flight == 1 and ring.released == 1
    kept[0].finish(2)
    ring.publish()
    assert guest.reap() == [(2, 2)]
    assert ring.readmit() == 1
    assert batches(ring, lambda batch: None) == [1]
    assert guest.reap() == [(4, 0)]


def test_an_answer_is_a_mistake(guest: Guest) -> None:
    offer(guest, 1)
    failed: list[BaseException] = []
    guest.ring().drain_batch(lambda batch: 1, lambda request, error: failed.append(error), 1)
    assert [str(error) for error in failed] == ["handle_batch returned int, not None"]


def test_an_exception_of_on_error_comes_out_and_all_is_finished(guest: Guest) -> None:
    offer(guest, 3)

    def serve(batch: Batch) -> None:
        raise Stop

    ring = guest.ring()
    with pytest.raises(Stop):
        ring.drain_batch(serve, fail, 10)
    assert [head for head, _ in guest.reap()] == [0, 2, 4]
    assert batches(ring, lambda batch: None) == []


def test_a_request_that_somebody_keeps_is_not_made_anew(guest: Guest) -> None:
    kept: list[Request | Batch] = []

    def keep(turn: int, batch: Batch) -> None:
        kept.append(batch if turn == 2 else batch[turn])

    ring = guest.ring()
    for turn in range(3):
        offer(guest, 4)
        batches(ring, partial(keep, turn))
    offer(guest, 4)
    seen: list[int] = []
    batches(ring, lambda batch: seen.extend(map(id, batch)))
    first, second, third = kept
    assert isinstance(first, Request) and isinstance(second, Request)
    assert (first.head, first.finished, second.head, second.finished) == (0, True, 2, True)
    assert isinstance(third, Batch) and [request.head for request in third] == [0, 2, 4, 6]
    with pytest.raises(RequestFinished):
        third.finish()
    assert not {id(first), id(second), *map(id, third)} & set(seen)


def test_what_was_set_of_one_is_not_there_in_the_next(guest: Guest) -> None:
    ring = guest.ring()
    offer(guest, 2)

    def first(batch: Batch) -> None:
        batch.read(7)
        batch.write(b"ab")
        batch.put(5, b"x")
        for request in batch:
            request.resubmit = "drop"
        batch.finish()

    batches(ring, first)
    offer(guest, 2)

    def second(batch: Batch) -> None:
        for request in batch:
            assert (request.readable, request.writable, request.written) == (16, 17, 0)
            assert (request.resubmit, request.deferred, request.finished) == ("run", False, False)

    batches(ring, second)
    assert [length for _, length in guest.reap()] == [2, 2, 0, 0]


def test_a_ring_that_breaks_has_those_before_served(guest: Guest) -> None:
    offer(guest, 2)
    guest.offer(SIZE + 1)
    ring = guest.ring()
    seen: list[int] = []
    with pytest.raises(RingError, match="no descriptor of the table"):
        batches(ring, lambda batch: seen.append(len(batch)))
    assert seen == [2] and [head for head, _ in guest.reap()] == [0, 2]


def test_a_stop_in_the_handler_leaves_what_was_not_shown_in_the_record(
    guest: Guest, record: Record
) -> None:
    offer(guest, 3)
    ring = start(guest, record)

    def serve(batch: Batch) -> None:
        batch[0].finish()
        ring.stop()

    batches(ring, serve)
    assert record.live == [0, 2, 4]
    assert guest.reap() == []


# The record.


def dies_over(
    guest: Guest, record: Record, bad: int, make: Callable[[Guest, Record], Ring]
) -> list[list[int]]:
    """What a worker had in each call up to its death in the one with the head `bad`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:

        def serve(batch: Batch) -> None:
            heads = [request.head for request in batch]
            os.write(writing, bytes([len(heads), *heads]))
            if bad in heads:
                os._exit(0)

        try:
            # What was mapped before is not there after a fork, and must not be unmapped.
            inherited = guest.memory
            guest.memory = GuestMemory.from_regions(
                (part.guest, part.size, part.user, part.offset, guest.fd) for part in PARTS
            )
            make(guest, record).drain_batch(serve, fail, 100)
        finally:
            os._exit(1 if inherited else 2)
    os.close(writing)
    with open(reading, "rb") as said:
        told = said.read()
    assert os.waitpid(child, 0)[1] == 0
    calls = []
    while told:
        calls.append([*told[1 : 1 + told[0]]])
        told = told[1 + told[0] :]
    return calls


def test_those_of_a_dead_worker_come_one_by_one_and_one_is_to_blame(
    guest: Guest, record: Record
) -> None:
    offer(guest, 4)
    assert dies_over(guest, record, 4, start) == [[0, 2, 4, 6]]
    assert [record[head].attempts for head in record.live] == [1, 1, 1, 1]
    assert dies_over(guest, record, 4, restart) == [[0], [2], [4]]
    assert dies_over(guest, record, 4, restart)[-1] == [4]
    ring = restart(guest, record)
    skipped: list[tuple[int, str, int]] = []
    ring.on_skip = lambda request, why, attempts: skipped.append((request.head, why, attempts))
    assert batches(ring, lambda batch: None) == [1]
    assert skipped == [(4, "poison", 3)]
    assert sorted(head for head, _ in guest.reap()) == [0, 2, 4, 6]
    assert record.live == []


def test_what_was_survived_is_not_held_against_it(guest: Guest, record: Record) -> None:
    offer(guest, 3)
    ring = start(guest, record)

    def serve(batch: Batch) -> None:
        assert [record[head].attempts for head in record.live] == [1, 1, 1]
        batch[0].finish()
        assert [record[head].attempts for head in record.live] == [0, 1, 1]
        batch[1].defer()

    batches(ring, serve)
    assert [(head, record[head].attempts) for head in record.live] == [(2, 0)]


def test_what_comes_again_goes_before_what_is_new(guest: Guest, record: Record) -> None:
    offer(guest, 2)
    dies_over(guest, record, 0, start)
    guest.submit(8, [(DATA, 8, True)])
    guest.submit(10, [(DATA, 8, True)])
    assert batches(restart(guest, record), lambda batch: None) == [1, 1, 2]


def test_a_policy_holds_for_each_of_them(guest: Guest, record: Record) -> None:
    def make(guest: Guest, record: Record) -> Ring:
        ring = start(guest, record)
        ring.resubmit = "drop"
        return ring

    offer(guest, 3)
    dies_over(guest, record, 0, make)
    ring = restart(guest, record)
    ring.resubmit = "drop"
    skipped: list[str] = []
    ring.on_skip = lambda request, why, attempts: skipped.append(why)
    assert batches(ring, lambda batch: None) == []
    assert skipped == ["drop"] * 3


def test_all_are_counted_with_their_bytes_and_their_share_of_the_time(guest: Guest) -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    offer(guest, 5)
    ring = guest.ring(counters=counters)

    def serve(batch: Batch) -> None:
        batch.read(10)
        batch.write(bytes(5 * 3))

    batches(ring, serve)
    found = counters.snapshot()
    assert (found.requests, found.bytes_read, found.bytes_written) == (5, 50, 15)
    assert sum(found.latency) == 5


# Against the verbs of a request.

VERBS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 40)),
        st.tuples(st.just("write"), st.integers(0, 6)),
        st.tuples(st.just("put"), st.integers(-20, 20)),
        st.tuples(st.just("preadv"), st.integers(0, 9)),
        st.tuples(st.just("pwritev"), st.integers(0, 9)),
    ),
    max_size=6,
)


def one_by_one(request: Request, number: int, program: list[tuple[str, int]], file: int) -> None:
    for verb, value in program:
        match verb:
            case "read":
                request.read(value)
            case "write":
                if value <= request.writable:
                    request.write(bytes([number]) * value)
            case "put":
                if -17 <= value <= 16:
                    request.put(value, bytes([number]))
            case "preadv":
                if value <= request.writable:
                    request.preadv(file, 3 * number, value)
            case "pwritev":
                if value <= request.readable:
                    request.pwritev(file, 100 + 10 * number, value)


def together(batch: Batch, program: list[tuple[str, int]], file: int) -> None:
    numbers = range(len(batch))
    for verb, value in program:
        match verb:
            case "read":
                batch.read(value)
            case "write":
                if value <= batch.writable[0]:
                    batch.write(b"".join(bytes([n]) * value for n in numbers))
            case "put":
                if -17 <= value <= 16:
                    batch.put_rows(value, bytes(numbers))
            case "preadv":
                if value <= batch.writable[0]:
                    batch.preadv(file, [3 * n for n in numbers], value)
            case "pwritev":
                if value <= batch.readable[0]:
                    batch.pwritev(file, [100 + 10 * n for n in numbers], value)


@given(program=VERBS, count=st.integers(1, 5), pieces=st.integers(1, 3))
def test_a_batch_does_what_its_requests_would(
    program: list[tuple[str, int]], count: int, pieces: int
) -> None:
    results = [outcome(program, count, pieces, serves) for serves in (together, one_by_one)]
    assert results[0] == results[1]


def outcome(
    program: list[tuple[str, int]], count: int, pieces: int, serves: Callable[..., None]
) -> tuple[list[tuple[int, int]], bytes, bytes]:
    """What the driver gets, what memory holds then, and the file."""
    file = os.memfd_create("file", os.MFD_CLOEXEC)
    os.pwrite(file, FILE, 0)
    try:
        with Guest(SIZE) as guest:
            for number in range(count):
                at = DATA + ROOM * number
                guest.write(at, bytes([100 + number]) * 16 + bytes(17))
                cut = 16 // pieces
                parts = [(at + cut * n, cut, False) for n in range(pieces)]
                parts += [(at + 16, 1, True), (at + 17, 16, True)]
                guest.submit(6 * number, parts)
            ring, numbers = guest.ring(), iter(range(count))
            if serves is together:
                ring.drain_batch(lambda batch: serves(batch, program, file), fail, 100)
            else:
                ring.drain(lambda request: serves(request, next(numbers), program, file), fail, 100)
            assert guest.intact()
            return guest.reap(), guest.read(DATA, ROOM * count), os.pread(file, 4096, 0)
    finally:
        os.close(file)
