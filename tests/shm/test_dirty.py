"""The dirty log: which bits are set, and that no way of writing to a request escapes it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shm.guest import (
    BOUNDARY,
    DATA,
    END,
    INDIRECT,
    NEXT,
    RING,
    WRITE,
    Guest,
    fail,
    take,
    write_table,
)
from tests.shm.record import Record, restart, start, submit
from vuproc.devices.blk_native import NativeBlk
from vuproc.errors import MemoryFault, RequestFinished, RingError
from vuproc.shm.dirty import DirtyLog
from vuproc.shm.request import Request

PAGE = 4096
LOG_BYTES = 64
"""Enough for the pages of the guest's regions."""


class Log:
    """A log of `size` bytes behind `offset` in its file, and what lies around it."""

    def __init__(self, size: int = LOG_BYTES, offset: int = 0) -> None:
        self.size, self.offset = size, offset
        self.fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, offset + size + 64)
        self.bytes = mmap.mmap(self.fd, 0)
        self.log = DirtyLog(self.fd, size, offset)

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)

    def pages(self) -> set[int]:
        """The marked ones; takes them away."""
        whole = bytes(self.bytes)
        self.bytes[:] = bytes(len(whole))
        bits = whole[self.offset : self.offset + self.size]
        assert not any(whole[: self.offset]) and not any(whole[self.offset + self.size :])
        return {8 * i + bit for i, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1}


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(8) as made:
        yield made


def page(addr: int) -> int:
    return addr // PAGE


# The log.


@given(st.integers(0, 80 * PAGE), st.integers(0, 80 * PAGE))
def test_a_range_is_the_pages_that_it_touches(addr: int, length: int) -> None:
    log = Log(size=8, offset=24)
    try:
        log.log.mark(addr, length)
        touched = set(range(addr // PAGE, (addr + length - 1) // PAGE + 1)) if length else set()
        assert log.pages() == {one for one in touched if one < 64}
        assert log.log.ignored == len([one for one in touched if one >= 64])
    finally:
        log.close()


@pytest.mark.parametrize("addr", [64 * PAGE, (1 << 64) - 1, (1 << 64) - PAGE, 1 << 52])
@pytest.mark.parametrize("length", [1, 2 * PAGE, (1 << 64) - 1])
def test_nothing_beyond_the_log_is_written(addr: int, length: int) -> None:
    log = Log(size=8)
    try:
        log.log.mark(addr, length)
        assert log.pages() == set()
        last = min(addr + length, 1 << 64) - 1
        assert log.log.ignored == last // PAGE - addr // PAGE + 1
    finally:
        log.close()


def test_bits_of_others_stay(log: Log) -> None:
    log.bytes[0] = 0b10000001
    log.log.mark(PAGE, 2 * PAGE)
    assert log.bytes[0] == 0b10000111 and log.log.size == LOG_BYTES


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (LOG_BYTES + 65, 0), (8, 1 << 40), (-1, 0)])
def test_a_log_that_its_file_does_not_hold(log: Log, size: int, offset: int) -> None:
    with pytest.raises(MemoryFault):
        DirtyLog(log.fd, size, offset)


# The ring.


def by_view(request: Request, file: int) -> None:
    for part in request.writable_segments:
        part[:] = b"v" * part.nbytes
    request.finish(8)


def by_slice_kept(request: Request, file: int) -> None:
    part = request.writable_segments[0][2:]
    part[0] = 1


WAYS: dict[str, Callable[[Request, int], object]] = {
    "write": lambda request, file: request.write(b"written!"),
    "put": lambda request, file: request.put(4, b"put"),
    "preadv": lambda request, file: request.preadv(file, 0, 8),
    "finish_preadv": lambda request, file: request.finish_preadv(file, 0, 4, done=b"done"),
    "view": by_view,
    "slice": by_slice_kept,
    "nothing": lambda request, file: None,
    "error": lambda request, file: request.finish(-1),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_writing_is_marked(guest: Guest, log: Log, way: str) -> None:
    ring = guest.ring()
    ring.log_writes(log.log, guest.used)
    log.pages()
    file = os.memfd_create("file", os.MFD_CLOEXEC)
    os.pwrite(file, b"contents" * 4, 0)
    guest.submit(0, [(DATA, 8, False), (BOUNDARY - 4, 8, True), (DATA + 5 * PAGE, 3, True)])
    try:
        ring.drain(lambda request: WAYS[way](request, file), lambda request, error: None, 1)
    finally:
        os.close(file)
    assert guest.taken != guest.used_idx
    buffers = {page(BOUNDARY - 4), page(BOUNDARY), page(DATA + 5 * PAGE)}
    assert log.pages() == buffers | {page(RING)}


@pytest.mark.parametrize("indirect", [False, True])
def test_a_native_device_is_marked_by_its_descriptors(
    guest: Guest, log: Log, indirect: bool
) -> None:
    ring = guest.ring()
    ring.log_writes(log.log)
    header = b"\x08" + bytes(15)  # GET_ID
    guest.write(DATA, header)
    parts = [(DATA, 16, 0), (DATA + PAGE, 20, WRITE), (END - 1, 1, WRITE)]
    entries = [
        (addr, length, flags | (NEXT if i < 2 else 0), i + 1 if i < 2 else 0)
        for i, (addr, length, flags) in enumerate(parts)
    ]
    if indirect:
        write_table(guest, DATA + 0x1000 * 9, entries)
        guest.set_desc(0, DATA + 0x1000 * 9, 48, INDIRECT)
    else:
        for i, entry in enumerate(entries):
            guest.set_desc(i, *entry)
    guest.offer(0)
    ring.serve_native(NativeBlk(0, 1 << 20, serial=b"serial"), fail, 8)
    assert guest.reap() == [(0, 21)] and guest.read(DATA + PAGE, 6) == b"serial"
    # No address for the used ring was given.
    assert log.pages() == {page(DATA + PAGE), page(END - 1)}


def test_nothing_is_marked_before_it_is_written_and_all_before_it_is_shown(
    guest: Guest, log: Log
) -> None:
    ring = guest.ring()
    ring.log_writes(log.log, guest.used)
    log.pages()
    submit(guest, 0)
    (request,) = take(ring)
    assert log.pages() == set()
    request.finish(8)
    assert log.pages() == {page(DATA)} and guest.reap() == []
    ring.publish()
    assert log.pages() == {page(RING)}


def test_a_request_that_comes_again_is_marked_where_it_lies_then(guest: Guest, log: Log) -> None:
    ring = guest.ring()
    ring.log_writes(log.log)
    submit(guest, 0)
    (request,) = take(ring)
    request.release()
    guest.set_desc(0, DATA + 3 * PAGE, 8, WRITE)
    ring.readmit()
    (request,) = take(ring)
    request.finish()
    assert log.pages() == {page(DATA + 3 * PAGE)}


def test_what_is_in_flight_when_the_log_comes_is_marked_when_it_is_finished(
    guest: Guest, log: Log
) -> None:
    ring = guest.ring()
    submit(guest, 0, 1, 2)
    guest.set_desc(1, DATA + 4 * PAGE, 8, WRITE)
    first, second, third = take(ring)
    first.finish()
    third.release()
    # One is finished and not shown: its bytes were there before.
    ring.log_writes(log.log, guest.used)
    assert guest.reap() == [(0, 0)] and log.pages() == {page(RING)}
    second.finish()
    assert log.pages() == {page(DATA + 4 * PAGE)}
    ring.readmit()
    (request,) = take(ring)
    request.finish()
    assert log.pages() == {page(DATA), page(RING)}


def test_another_log_has_what_the_one_before_knew_of(guest: Guest, log: Log) -> None:
    other = Log()
    try:
        ring = guest.ring()
        ring.log_writes(log.log, guest.used)
        submit(guest, 0, 1)
        guest.set_desc(1, DATA + 4 * PAGE, 8, WRITE)
        first, second = take(ring)
        first.finish()
        ring.log_writes(other.log, guest.used)
        assert log.pages() == {page(DATA), page(RING)} and other.pages() == {page(RING)}
        second.finish()
        assert log.pages() == set() and other.pages() == {page(DATA + 4 * PAGE)}
    finally:
        other.close()


def test_nothing_is_marked_without_a_log(guest: Guest, log: Log) -> None:
    ring = guest.ring()
    ring.log_writes(log.log, guest.used)
    submit(guest, 0, 1)
    first, second = take(ring)
    first.finish()
    log.pages()
    ring.log_writes(None)
    assert guest.reap() == [(0, 0)] and log.pages() == {page(RING)}
    second.finish()
    submit(guest, 3)
    ring.drain(lambda _: None, fail, 10)
    ring.stop()
    # A ring that has stopped has nothing to mark.
    ring.log_writes(log.log, guest.used)
    assert log.pages() == set()


def test_a_chain_that_its_driver_spoilt_in_flight_breaks_the_ring(guest: Guest, log: Log) -> None:
    ring = guest.ring()
    submit(guest, 0)
    (request,) = take(ring)
    guest.set_desc(0, DATA, 8, WRITE | NEXT, 999)
    with pytest.raises(RingError, match="next descriptor is outside the table"):
        ring.log_writes(log.log, guest.used)
    with pytest.raises(RequestFinished):
        request.finish()
    assert ring.broken is not None


@pytest.mark.parametrize("full", [False, True])
def test_marks_are_told_of(guest: Guest, log: Log, full: bool) -> None:
    most = (1 << 64) - 2
    call = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        if full:
            os.eventfd_write(call, most)
        ring = guest.ring()
        ring.set_log_call(call)
        submit(guest, 0)
        ring.drain(lambda _: None, fail, 10)
        if not full:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(call)
        ring.log_writes(log.log, guest.used)
        submit(guest, 1)
        ring.drain(lambda _: None, fail, 10)
        assert os.eventfd_read(call) == (most if full else 1)
        ring.set_log_call(-1)
        submit(guest, 2)
        ring.drain(lambda _: None, fail, 10)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(call)
        assert len(guest.reap()) == 3
    finally:
        os.close(call)


def test_flags_and_event_words_are_in_the_log_at_the_end(guest: Guest, log: Log) -> None:
    ring = guest.ring()
    ring.log_writes(log.log, guest.used)
    log.pages()
    ring.disarm()
    ring.stop()
    assert log.pages() == {page(RING)}


def test_a_successor_marks_the_used_ring_whatever_its_predecessor_did(
    guest: Guest, log: Log
) -> None:
    with Record(8) as record:
        submit(guest, 0)
        start(guest, record).drain(lambda _: None, fail, 10)
        restart(guest, record).log_writes(log.log, guest.used)
    assert log.pages() == {page(RING)}


@pytest.mark.parametrize("base", [0, 500, 510])
def test_only_what_was_written_of_a_long_used_ring_is_marked(log: Log, base: int) -> None:
    """1024 elements lie in three pages."""
    with Guest(1024, base) as guest:
        ring = guest.ring(base=base)
        ring.log_writes(log.log, guest.used)
        whole = set(range(page(guest.used), page(guest.used + 6 + 8 * 1024 - 1) + 1))
        assert log.pages() == whole and len(whole) == 3
        submit(guest, *range(20))
        ring.drain(lambda _: None, fail, 100)
        first = guest.used + 4 + 8 * (base % 1024)
        elements = {page(first), page(first + 8 * 20 - 1)}
        assert log.pages() == {page(DATA), page(guest.used)} | elements


def test_elements_that_wrap_round_are_marked_on_both_sides(log: Log) -> None:
    with Guest(1024, 1020) as guest:
        ring = guest.ring(base=1020)
        ring.log_writes(log.log, guest.used)
        log.pages()
        submit(guest, *range(20))
        ring.drain(lambda _: None, fail, 100)
        last = page(guest.used + 4 + 8 * 1023)
        assert log.pages() == {page(DATA), page(guest.used), last}


@pytest.mark.parametrize("used", [LOG_BYTES * 8 * PAGE, (1 << 64) - 1])
def test_a_log_address_out_of_range_is_counted_and_nothing_else(
    guest: Guest, log: Log, used: int
) -> None:
    ring = guest.ring()
    ring.log_writes(log.log, used)
    submit(guest, 0)
    ring.drain(lambda _: None, fail, 10)
    assert log.pages() == {page(DATA)} and log.log.ignored > 0 and guest.reap() == [(0, 0)]
