"""A request's verbs: two streams with a cursor each, over however many descriptors."""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shm.guest import BOUNDARY, DATA, INDIRECT, NEXT, WRITE, Guest, descriptor, fail, take
from vuproc.errors import RequestFinished, RingError
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing

Parts = list[tuple[int, int, bool]]
"""(guest address, length, device may write) of each descriptor."""


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(16) as made:
        yield made


@pytest.fixture
def file() -> Iterator[int]:
    made = os.memfd_create("file", os.MFD_CLOEXEC)
    os.pwrite(made, bytes(range(256)) * 16, 0)
    yield made
    os.close(made)


def request_of(guest: Guest, parts: Parts) -> tuple[SplitRing, Request]:
    ring = guest.ring()
    guest.submit(0, parts)
    (request,) = take(ring)
    return ring, request


def test_reading_gathers_over_descriptors_and_ends(guest: Guest) -> None:
    guest.write(DATA, b"abcdef")
    guest.write(DATA + 100, b"ghi")
    _, request = request_of(guest, [(DATA, 6, False), (DATA, 0, False), (DATA + 100, 3, False)])
    assert (request.readable, request.readable_total) == (9, 9)
    assert request.read(4) == b"abcd"
    assert request.read(3) == b"efg"
    assert (request.readable, request.readable_total) == (2, 9)
    assert request.read(0) == b""
    assert request.read() == b"hi"
    assert request.read(10) == b""
    assert request.written == 0


def test_skipping_moves_the_read_cursor(guest: Guest) -> None:
    guest.write(DATA, b"abcdef")
    _, request = request_of(guest, [(DATA, 2, False), (DATA + 2, 4, False)])
    assert request.skip(3) == 3
    assert request.read(1) == b"d"
    assert request.skip(10) == 2
    with pytest.raises(ValueError, match="backwards"):
        request.skip(-1)


def test_writing_scatters_and_takes_what_fits(guest: Guest) -> None:
    _, request = request_of(guest, [(DATA, 2, True), (DATA + 50, 3, True)])
    assert request.write(b"ab") == 2
    assert request.write(memoryview(b"cdef")) == 3
    assert request.write(b"x") == 0
    assert (request.writable, request.writable_total, request.written) == (0, 5, 5)
    assert guest.read(DATA, 3) == b"ab\0" and guest.read(DATA + 50, 4) == b"cde\0"


def test_put_leaves_the_cursor_alone_and_counts_each_byte_once(guest: Guest) -> None:
    _, request = request_of(guest, [(DATA, 8, True), (DATA + 8, 1, True)])
    assert request.put(8, b"S") == 1
    assert (request.written, request.writable) == (1, 9)
    request.put(-1, b"T")
    assert request.written == 1
    request.put(0, b"abcd")
    assert request.written == 5
    request.write(b"ABCDEF")
    assert request.written == 7
    assert guest.read(DATA, 9) == b"ABCDEF\0\0T"
    request.put(2, b"")
    request.put(6, b"gh")
    assert request.written == 9


@pytest.mark.parametrize(("offset", "data"), [(9, b"x"), (8, b"xy"), (-10, b"x"), (1 << 40, b"x")])
def test_put_outside_is_refused(guest: Guest, offset: int, data: bytes) -> None:
    _, request = request_of(guest, [(DATA, 9, True)])
    with pytest.raises(ValueError, match="of 9 writable"):
        request.put(offset, data)
    assert request.written == 0


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 39), st.integers(0, 20)), min_size=1, max_size=12
    )
)
def test_used_length_never_exceeds_the_bytes_that_were_written(
    operations: list[tuple[bool, int, int]],
) -> None:
    with Guest(16) as guest:
        _, request = request_of(guest, [(DATA + 100 * i, 5, True) for i in range(8)])
        touched: set[int] = set()
        puts = 0
        for is_put, offset, length in operations:
            if is_put:
                length = min(length, 40 - offset)
                request.put(offset, b"p" * length)
                touched.update(range(offset, offset + length))
                puts += 1
            else:
                position = 40 - request.writable
                touched.update(range(position, position + request.write(b"w" * length)))
        assert request.written <= len(touched)
        # Four separate areas are remembered; fewer cannot lose one.
        if puts <= 4:
            assert request.written == len(touched)


def test_preadv_reads_a_file_into_the_writable_area(guest: Guest, file: int) -> None:
    parts = [(DATA, 10, True), (BOUNDARY - 5, 10, True), (DATA + 99, 1, True)]
    _, request = request_of(guest, parts)
    assert request.preadv(file, 3, 4) == 4
    assert request.preadv(file, 7, request.writable - 1) == 16
    request.put(-1, b"\xff")
    want = bytes(range(3, 23))
    assert guest.read(DATA, 10) == want[:10]
    assert guest.read(BOUNDARY - 5, 5) + guest.read(BOUNDARY, 5) == want[10:]
    assert guest.read(DATA + 99, 1) == b"\xff"
    assert request.written == 21


def test_preadv_is_short_at_the_end_of_the_file(guest: Guest, file: int) -> None:
    _, request = request_of(guest, [(DATA, 100, True)])
    assert request.preadv(file, 4096 - 10) == 10
    assert request.preadv(file, 4096) == 0
    assert (request.written, request.writable) == (10, 90)


def test_pwritev_writes_the_readable_area_to_a_file(guest: Guest, file: int) -> None:
    guest.write(DATA, b"0123456789")
    _, request = request_of(guest, [(DATA, 4, False), (DATA + 4, 6, False)])
    request.skip(1)
    assert request.pwritev(file, 100, 5) == 5
    assert request.pwritev(file, 105) == 4
    assert os.pread(file, 9, 100) == b"123456789"
    assert request.written == 0


def test_files_are_numbers_or_have_one(guest: Guest, file: int) -> None:
    _, request = request_of(guest, [(DATA, 10, True)])
    with open(file, "rb", closefd=False) as stream:
        assert request.preadv(stream, 0, 2) == 2
    with pytest.raises(TypeError):
        request.preadv("file", 0)  # type: ignore[arg-type]


def test_more_segments_than_one_system_call_takes(file: int) -> None:
    with Guest(4) as guest:
        table = DATA
        count = 1500
        for i in range(count):
            flags = WRITE | (0 if i == count - 1 else NEXT)
            guest.write(table + 16 * i, descriptor(BOUNDARY + 2 * i, i % 2, flags, i + 1))
        guest.set_desc(0, table, 16 * count, INDIRECT)
        guest.offer(0)
        ring = guest.ring(chain_limit=2000)
        (request,) = take(ring)
        assert len(request.writable_segments) == count
        assert request.preadv(file, 0) == 750
        got = guest.read(BOUNDARY, 2 * count)
        assert got[2::4] == (bytes(range(256)) * 3)[:750]


def test_a_transfer_beyond_the_area_is_refused(guest: Guest, file: int) -> None:
    _, request = request_of(guest, [(DATA, 10, False), (DATA, 10, True)])
    with pytest.raises(ValueError, match="11 bytes wanted of 10"):
        request.preadv(file, 0, 11)
    with pytest.raises(ValueError, match="11 bytes wanted of 10"):
        request.pwritev(file, 0, 11)


def test_a_failed_transfer_says_why_and_moves_nothing(guest: Guest, file: int) -> None:
    _, request = request_of(guest, [(DATA, 10, False), (DATA, 10, True)])
    with pytest.raises(OSError, match="Invalid argument"):
        request.preadv(file, -1)
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="Illegal seek"):
            request.pwritev(writing, 0)
    finally:
        os.close(reading)
        os.close(writing)
    assert (request.readable, request.writable, request.written) == (10, 10, 0)


def test_f11_no_space_is_a_short_write_and_then_an_error(guest: Guest) -> None:
    full = os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
    try:
        _, request = request_of(guest, [(DATA, 10, False)])
        with pytest.raises(OSError, match="No space left"):
            request.pwritev(full, 0)
    finally:
        os.close(full)


def test_segments_are_the_whole_areas_whatever_the_cursors_say(guest: Guest) -> None:
    guest.write(DATA, b"abcd")
    _, request = request_of(
        guest, [(DATA, 4, False), (DATA, 0, False), (BOUNDARY - 2, 4, True), (DATA, 0, True)]
    )
    request.read()
    assert [bytes(part) for part in request.readable_segments] == [b"abcd", b""]
    assert all(part.readonly for part in request.readable_segments)
    parts = request.writable_segments
    assert [part.nbytes for part in parts] == [2, 2, 0]
    assert not any(part.readonly for part in parts)
    parts[0][:] = b"xy"
    assert guest.read(BOUNDARY - 2, 2) == b"xy"
    assert request.written == 0


def test_a_slice_of_a_segment_keeps_its_memory_after_everything_else_is_gone(guest: Guest) -> None:
    ring, request = request_of(guest, [(DATA, 4, True)])
    (part,) = request.writable_segments
    part = part[1:]
    ring.stop()
    guest.memory = type(guest.memory)()
    del ring, request
    gc.collect()
    part[:] = b"afe"
    assert guest.read(DATA, 4) == b"\0afe"


def break_ring(ring: SplitRing) -> None:
    with pytest.raises(RingError, match="further on"):
        ring.arm()


ENDS: dict[str, Callable[[SplitRing, Request], object]] = {
    "finish": lambda ring, request: request.finish(),
    "release": lambda ring, request: request.release(),
    "stop": lambda ring, request: ring.stop(),
    "break": lambda ring, request: break_ring(ring),
}


@pytest.mark.parametrize("end", ENDS)
def test_segments_end_with_their_request(guest: Guest, end: str) -> None:
    ring, request = request_of(guest, [(DATA, 4, False), (DATA, 4, True)])
    guest.submit(4, [(DATA, 4, True)])
    (other,) = take(ring)
    parts = [*request.readable_segments, *request.writable_segments, *request.writable_segments]
    (kept,) = other.writable_segments
    slices = [part[1:] for part in parts]
    held = struct.iter_unpack("<I", parts[1])
    if end == "break":
        guest.set_avail_idx(1000)
    ENDS[end](ring, request)
    for part in (parts[0], parts[2]):
        with pytest.raises(ValueError, match="released"):
            part[0]
    # What is a buffer of somebody else's, and a slice, cannot be ended: the memory stays there.
    assert (next(held), bytes(parts[1])) == ((0,), bytes(4))
    assert all(bytes(part) == bytes(3) for part in slices)
    if end in ("finish", "release"):
        kept[:] = b"free"
        assert guest.read(DATA, 4) == b"free"
    else:
        with pytest.raises(ValueError, match="released"):
            kept[0]


def test_segments_of_a_request_that_the_device_drops_end_with_it(guest: Guest) -> None:
    ring, request = request_of(guest, [(DATA, 4, True)])
    (part,) = request.writable_segments
    del request
    with pytest.raises(ValueError, match="released"):
        part[0]
    assert ring.lost == 1
    ring.stop()


def test_segments_end_when_handle_returns(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(0, [(DATA, 4, True)])
    seen: list[memoryview] = []
    ring.drain(lambda request: seen.extend(request.writable_segments), fail, 1)
    with pytest.raises(ValueError, match="released"):
        seen[0][0] = 1


def test_b26_what_was_read_is_a_copy(guest: Guest) -> None:
    guest.write(DATA, b"before")
    _, request = request_of(guest, [(DATA, 6, False)])
    data = request.read()
    guest.write(DATA, b"after!")
    assert data == b"before"


def test_finish_gives_what_the_verbs_wrote_or_what_it_is_told(guest: Guest) -> None:
    ring = guest.ring()
    for head in range(3):
        guest.submit(head, [(DATA, 10, True)])
    first, second, third = take(ring)
    first.write(b"abc")
    first.finish()
    second.finish(7)
    third.write(b"abc")
    third.finish(written=0)
    ring.publish()
    assert guest.reap() == [(0, 3), (1, 7), (2, 0)]
    assert (first.written, second.written, third.written) == (3, 7, 0)


@pytest.mark.parametrize("written", [-1, 11, 1 << 70])
def test_c39_a_used_length_beyond_the_room_is_refused(guest: Guest, written: int) -> None:
    ring, request = request_of(guest, [(DATA, 10, True)])
    with pytest.raises(ValueError, match="of 10 writable"):
        request.finish(written)
    assert not request.finished
    request.finish(10)
    assert ring.in_flight == 0


def verbs(request: Request) -> None:
    for verb in (
        request.read,
        request.defer,
        request.finish,
        lambda: request.skip(0),
        lambda: request.write(b""),
        lambda: request.put(0, b""),
        lambda: request.preadv(0, 0),
        lambda: request.pwritev(0, 0),
        lambda: request.readable_segments,
        lambda: request.writable_segments,
    ):
        with pytest.raises(RequestFinished) as caught:
            verb()
        assert (caught.value.queue, caught.value.head) == (3, 0)


def test_a_finished_request_takes_no_verb(guest: Guest) -> None:
    ring, request = request_of(guest, [(DATA, 4, False), (DATA, 4, True)])
    request.finish()
    assert request.finished
    verbs(request)
    ring.publish()
    assert guest.reap() == [(0, 0)]


def test_a_stopped_ring_detaches_its_requests(guest: Guest) -> None:
    ring, request = request_of(guest, [(DATA, 4, False), (DATA, 4, True)])
    ring.stop()
    assert request.finished
    verbs(request)
    assert guest.reap() == []


def test_a_broken_ring_detaches_its_requests(guest: Guest) -> None:
    ring, request = request_of(guest, [(DATA, 4, False), (DATA, 4, True)])
    guest.set_avail_idx(100)
    with pytest.raises(Exception, match="further on"):
        ring.drain(lambda _: None, fail, 10)
    verbs(request)


def test_a_request_that_no_ring_made_does_nothing() -> None:
    with pytest.raises(TypeError):
        Request()
    request = Request.__new__(Request)
    assert request.finished
    with pytest.raises(RequestFinished):
        request.read()
    with pytest.raises(RequestFinished):
        request.finish()


def test_a_request_dropped_unfinished_stays_in_flight_and_is_counted(guest: Guest) -> None:
    ring, request = request_of(guest, [(DATA, 4, True)])
    del request
    assert (ring.lost, ring.in_flight, ring.unpublished) == (1, 1, 0)


def test_c10_a_read_without_a_number_does_not_allocate_by_the_guests_length() -> None:
    with Guest(4) as guest:
        count = 200
        for i in range(count):
            flags = 0 if i == count - 1 else NEXT
            guest.write(DATA + 16 * i, descriptor(0x100000, 0x40000, flags, i + 1))
        guest.set_desc(0, DATA, 16 * count, INDIRECT)
        guest.offer(0)
        (request,) = take(guest.ring(chain_limit=count))
        assert request.readable == count * 0x40000
        with pytest.raises(ValueError, match="give a number"):
            request.read()
        assert len(request.read(100)) == 100


def test_repr_shows_where_it_stands(guest: Guest) -> None:
    _, request = request_of(guest, [(DATA, 4, False), (DATA, 8, True)])
    request.read(1)
    assert repr(request) == "<Request queue=3 head=0 readable=3/4 writable=8/8 deferred>"


@pytest.mark.parametrize("kept", [False, True])
def test_nothing_of_a_finished_request_is_seen_in_the_next(guest: Guest, kept: bool) -> None:
    """Whether its object serves once more, or somebody has it still."""
    guest.write(DATA, b"abcd")
    for head in (0, 3):
        guest.submit(head, [(DATA, 4, False), (DATA + 100, 8, True), (DATA + 200, 8, True)])
    guest.submit(6, [(DATA + 300, 5, True)])
    held: list[Request] = []
    seen: list[tuple[object, ...]] = []

    def handle(request: Request) -> None:
        seen.append((request.head, request.read(2), request.writable, request.written))
        seen.append((request.deferred, request.resubmit, request.finished))
        if kept:
            held.append(request)
        if not request.readable_total:
            request.release()
            seen.append((request.written,))
            return
        request.put(request.writable_total - 1, b"x")
        request.resubmit = "drop"
        request.write(b"123")
        request.finish()

    ring = guest.ring()
    assert ring.drain(handle, fail, 10) == 3
    assert seen[0:6:2] == [(0, b"ab", 16, 0), (3, b"ab", 16, 0), (6, b"", 5, 0)]
    assert seen[1:6:2] == [(False, "run", False)] * 3
    assert seen[6:] == [(0,)]
    assert guest.reap() == [(0, 4), (3, 4)] and ring.released == 1
    assert [request.head for request in held] == ([0, 3, 6] if kept else [])
    assert [request.written for request in held] == ([4, 4, 0] if kept else [])


def test_what_has_a_request_keeps_its_object(guest: Guest) -> None:
    """An exception's frames, views of it, and the device that has deferred it."""
    for head in range(0, 8, 2):
        guest.submit(head, [(DATA, 4, False), (DATA + 100, 8, True)])
    raised: list[tuple[Request, BaseException]] = []
    deferred: list[Request] = []
    views: list[memoryview] = []

    def handle(request: Request) -> None:
        match request.head:
            case 0:
                raise ValueError("of the device")
            case 2:
                request.defer()
                deferred.append(request)
            case 4:
                views.extend(request.writable_segments)
                request.finish(3)

    def on_error(request: Request, error: BaseException) -> None:
        raised.append((request, error))
        request.finish(1)

    ring = guest.ring()
    assert ring.drain(handle, on_error, 10) == 4
    assert [request.head for request, _ in raised] == [0]
    assert [request.head for request in deferred] == [2]
    assert guest.reap() == [(0, 1), (4, 3), (6, 0)]
    with pytest.raises(ValueError, match="released"):
        views[0][0]
    deferred[0].write(b"12")
    deferred[0].finish()
    ring.publish()
    assert guest.reap() == [(2, 2)]
