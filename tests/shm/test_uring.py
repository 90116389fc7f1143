"""Transfers by io_uring against real files, and what a kernel without it answers."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import resource
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process_limit import no_forks
from vuproc.errors import UringUnavailable
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.uring import Uring

PAGE = 4096
WAIT_MS = 30_000


@contextmanager
def uring(entries: int, files: list[int]) -> Iterator[Uring | None]:
    """A ring, or None where the kernel gives none: the reason is printed, and typed."""
    try:
        made = Uring(entries, files)
    except UringUnavailable as error:
        print(f"not run: {error}")
        assert error.errno in (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.ENOMEM), error
        yield None
        return
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    """A file of 64 pages, each filled with its own number."""
    path = tmp_path / "image"
    path.write_bytes(b"".join(bytes([n]) * PAGE for n in range(64)))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def all_of(ring: Uring, count: int) -> dict[int, tuple[int, int]]:
    """What became of `count` transfers, by tag."""
    done: dict[int, tuple[int, int]] = {}
    while len(done) < count:
        for tag, moved, failure in ring.collect(wait=True):
            assert tag not in done
            done[tag] = moved, failure
    assert ring.in_flight == 0
    return done


def test_reads_come_back_with_their_tags(image: int) -> None:
    with uring(64, [image]) as ring:
        if ring is None:
            return
        pages = [bytearray(PAGE) for _ in range(64)]
        for n, page in enumerate(pages):
            ring.read(0, [page], n * PAGE, 1000 + n)
        assert ring.in_flight == 64
        before = ring.pending
        ring.submit_all()
        assert (before, ring.pending) == (True, False)
        assert all_of(ring, 64) == {1000 + n: (PAGE, 0) for n in range(64)}
        assert [page[-1] for page in pages] == list(range(64))


def test_more_at_a_time_than_one_call_takes(image: int) -> None:
    with uring(2000, [image]) as ring:
        if ring is None:
            return
        assert ring.entries == 2048
        cells = [bytearray(8) for _ in range(2048)]
        for n, cell in enumerate(cells):
            ring.read(0, [cell], n % 64 * PAGE, n)
        with pytest.raises(OSError, match="busy") as refused:
            ring.read(0, [bytearray(8)], 0, 5000)
        assert refused.value.errno == errno.EBUSY
        assert set(all_of(ring, 2048).values()) == {(8, 0)}
        assert all(cell == bytes([n % 64]) * 8 for n, cell in enumerate(cells))


def test_pieces_are_one_stream_and_may_be_empty(image: int) -> None:
    with uring(4, [image]) as ring:
        if ring is None:
            return
        pieces = [bytearray(n) for n in (3, 0, PAGE, 1, 0, 2 * PAGE, 5)]
        ring.read(0, pieces, 7 * PAGE - 3, 1)
        assert all_of(ring, 1) == {1: (3 * PAGE + 9, 0)}
        expected = os.pread(image, 3 * PAGE + 9, 7 * PAGE - 3)
        assert b"".join(pieces) == expected


def test_more_pieces_than_one_operation_takes(image: int) -> None:
    with uring(2, [image]) as ring:
        if ring is None:
            return
        pieces = [bytearray(16) for _ in range(2500)]
        ring.read(0, pieces, 5, 1)
        assert all_of(ring, 1) == {1: (40_000, 0)}
        assert b"".join(pieces) == os.pread(image, 40_000, 5)
        data = os.urandom(40_000)
        ring.write(0, [data[at : at + 16] for at in range(0, 40_000, 16)], 77, 2)
        assert all_of(ring, 1) == {2: (40_000, 0)}
        assert os.pread(image, 40_000, 77) == data


def test_writes_and_then_a_sync(image: int) -> None:
    with uring(8, [image]) as ring:
        if ring is None:
            return
        ring.write(0, [b"x" * 10, b"y" * 20], 100, 1)
        ring.write(0, [b"z" * 30], 200, 2, flags=os.RWF_DSYNC)
        assert all_of(ring, 2) == {1: (30, 0), 2: (30, 0)}
        ring.sync(0, 3)
        assert all_of(ring, 1) == {3: (0, 0)}
        assert os.pread(image, 130, 100) == b"x" * 10 + b"y" * 20 + b"\0" * 70 + b"z" * 30


def test_the_end_of_the_file_is_fewer_bytes_and_no_error(image: int) -> None:
    with uring(4, [image]) as ring:
        if ring is None:
            return
        ring.read(0, [bytearray(100), bytearray(PAGE)], 64 * PAGE - 150, 1)
        ring.read(0, [bytearray(100)], 64 * PAGE, 2)
        ring.read(0, [], 0, 3)
        assert all_of(ring, 3) == {1: (150, 0), 2: (0, 0), 3: (0, 0)}


def test_what_a_pipe_gives_in_parts_is_gone_on_with(image: int) -> None:
    # A pipe is what ends a transfer early at will: disks do it where it cannot be had in a test.
    reading, writing = os.pipe()
    try:
        with uring(4, [image, reading]) as ring:
            if ring is None:
                return
            pieces = [bytearray(5), bytearray(6), bytearray(7)]
            ring.read(1, pieces, 0, 9)
            ring.submit_all()
            given = b""
            for part in (b"ab", b"cdefg", b"hijk", b"lmnopqr"):
                assert ring.collect() == []
                os.write(writing, part)
                given += part
                if len(given) < 18:
                    # The operation for what is left is there when this one's answer was taken.
                    assert select.select([ring], [], [], WAIT_MS / 1000)[0]
            assert all_of(ring, 1) == {9: (18, 0)}
            assert b"".join(pieces) == given
    finally:
        os.close(reading)
        os.close(writing)


def test_its_descriptor_is_readable_while_something_is_over(image: int) -> None:
    with uring(4, [image]) as ring:
        if ring is None:
            return
        with select.epoll() as poll:
            poll.register(ring, select.EPOLLIN)
            assert poll.poll(0) == []
            ring.read(0, [bytearray(PAGE)], 0, 1)
            ring.submit_all()
            assert poll.poll(WAIT_MS / 1000) == [(ring.fileno(), select.EPOLLIN)]
            assert ring.collect() == [(1, PAGE, 0)]
            assert poll.poll(0) == []


def test_errors_belong_to_their_transfer(image: int, tmp_path: Path) -> None:
    readonly = os.open(tmp_path / "image", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with uring(4, [image, readonly]) as ring:
            if ring is None:
                return
            ring.write(1, [b"no"], 0, 1)
            ring.write(0, [b"yes"], 0, 2)
            assert all_of(ring, 2) == {1: (0, errno.EBADF), 2: (3, 0)}
    finally:
        os.close(readonly)


def test_memory_that_is_gone_is_an_error_and_no_signal(image: int) -> None:
    # As guest memory whose file was truncated.
    memory = os.memfd_create("guest")
    try:
        os.ftruncate(memory, 2 * PAGE)
        with mmap.mmap(memory, 2 * PAGE) as mapped, uring(4, [image]) as ring:
            if ring is None:
                return
            os.ftruncate(memory, 0)
            with memoryview(mapped) as view:
                ring.read(0, [view], 0, 1)
                assert all_of(ring, 1) == {1: (0, errno.EFAULT)}
    finally:
        os.close(memory)


def test_direct_transfers(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * 1024)
    try:
        direct = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        print(f"not run: no O_DIRECT in {tmp_path}: {error}")
        assert error.errno == errno.EINVAL
        return
    try:
        with mmap.mmap(-1, 64 * PAGE) as memory, uring(64, [direct]) as ring:
            if ring is None:
                return
            with memoryview(memory) as view:
                pages = [view[n * PAGE : (n + 1) * PAGE] for n in range(64)]
                for n, page in enumerate(pages):
                    ring.read(0, [page], n * PAGE, n)
                assert all_of(ring, 64) == dict.fromkeys(range(64), (PAGE, 0))
                assert view == path.read_bytes()
                view[:PAGE] = b"d" * PAGE
                ring.write(0, [pages[0], pages[1]], 8 * PAGE, 1)
                assert all_of(ring, 1) == {1: (2 * PAGE, 0)}
                # Not a whole block: the file system says so, whichever way it is asked.
                ring.read(0, [pages[3][1:100]], 0, 2)
                moved, failure = all_of(ring, 1)[2]
                assert (moved, failure) in ((0, errno.EINVAL), (99, 0))
                for page in pages:
                    page.release()
        assert path.read_bytes()[8 * PAGE : 9 * PAGE] == b"d" * PAGE
    finally:
        os.close(direct)


def test_close_waits_for_what_is_in_flight(image: int) -> None:
    reading, writing = os.pipe()
    try:
        with uring(300, [image, reading]) as ring:
            if ring is None:
                return
            # These never end by themselves, and they fill the submission queue.
            for n in range(300):
                ring.read(1, [bytearray(8)], 0, n)
            ring.submit_all()
            assert ring.in_flight == 300
            ring.close()
            assert ring.in_flight == 0
            ring.close()
            with pytest.raises(ValueError, match="closed"):
                ring.fileno()
            with pytest.raises(ValueError, match="closed"):
                ring.sync(0, 1)
            assert not ring.pending
    finally:
        os.close(reading)
        os.close(writing)


def test_a_ring_that_is_forgotten_leaves_nothing(image: int) -> None:
    with uring(4, [image]) as ring:
        if ring is None:
            return
    before = len(os.listdir("/proc/self/fd"))
    forgotten = Uring(4, [image])
    forgotten.read(0, [bytearray(PAGE)], 0, 1)
    forgotten.submit_all()
    forgotten.read(0, [bytearray(PAGE)], 0, 2)
    del forgotten
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_outlive_their_descriptors(image: int) -> None:
    mine = os.dup(image)
    with uring(4, [mine]) as ring:
        os.close(mine)
        if ring is None:
            return
        page = bytearray(PAGE)
        ring.read(0, [page], 3 * PAGE, 1)
        assert all_of(ring, 1) == {1: (PAGE, 0)}
        assert page == b"\3" * PAGE


@pytest.mark.parametrize(
    ("entries", "files"), [(0, 1), (-1, 1), (32769, 1), (4, 0), (4, 5)], ids=str
)
def test_bounds(image: int, entries: int, files: int) -> None:
    with pytest.raises(ValueError, match=r"possible|registered"):
        Uring(entries, [image] * files)


def test_misuse(image: int) -> None:
    with uring(4, [image]) as ring:
        if ring is None:
            return
        with pytest.raises(OSError, match="nvalid"):
            ring.read(1, [bytearray(1)], 0, 1)
        with pytest.raises(OSError, match="nvalid"):
            ring.read(-1, [bytearray(1)], 0, 1)
        with pytest.raises(BufferError):
            ring.read(0, [b"constant"], 0, 1)
        ring.read(0, [bytearray(1)], 0, 1)
        with pytest.raises(ValueError, match="in flight"):
            ring.read(0, [bytearray(1)], 0, 1)
        assert all_of(ring, 1) == {1: (1, 0)}


def test_a_file_that_is_none() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(UringUnavailable) as refused:
        Uring(4, [reading])
    assert refused.value.errno in (errno.EBADF, errno.ENOSYS, errno.EPERM, errno.ENOMEM)


REFUSED = """
import ctypes, errno, sys
from vuproc.errors import UringUnavailable
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.uring import Uring
libc = ctypes.CDLL(None, use_errno=True)
class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte),
                ("k", ctypes.c_uint)]
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]
# load the number; is it io_uring_setup? EPERM : allow
rules = (Filter * 4)(
    Filter(0x20, 0, 0, 0), Filter(0x15, 0, 1, 425), Filter(0x06, 0, 0, 0x00050001),
    Filter(0x06, 0, 0, 0x7FFF0000))
assert libc.prctl(38, 1, 0, 0, 0) == 0
if libc.prctl(22, 2, ctypes.byref(Program(4, rules)), 0, 0):
    print("not run: no seccomp here")
    sys.exit(0)
try:
    Uring(8, [0])
except UringUnavailable as error:
    assert error.errno == errno.EPERM and error.step == "set up", repr(error)
    print(error)
else:
    sys.exit("io_uring in spite of the filter")
"""


def test_a_filter_that_forbids_it_is_a_typed_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "not run" in done.stdout or "no io_uring: set up: operation not" in done.stdout


def test_no_descriptor_left_is_a_typed_error(image: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(image)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(UringUnavailable) as refused:
            Uring(4, [image])
        assert refused.value.errno in (errno.EMFILE, errno.ENOSYS, errno.EPERM, errno.EACCES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


LIMITED = """
import os, sys
from vuproc.shm.uring import Uring
file = os.memfd_create("file")
ring = Uring(256, [file])
print("up", flush=True)
sys.stdin.readline()
for number in range(256):
    ring.write(0, [bytes([number]) * 2048] * 2, number * 4096, number)
done = {}
while len(done) < 256:
    done.update({tag: outcome for tag, *outcome in ring.collect(wait=True)})
assert set(map(tuple, done.values())) == {(4096, 0)}, done
ring.sync(0, 0)
back = bytearray(4096)
ring.read(0, [back], 7 * 4096, 1)
answers = {}
while len(answers) < 2:
    answers.update({tag: outcome for tag, *outcome in ring.collect(wait=True)})
assert answers == {0: [0, 0], 1: [4096, 0]} and back == bytes([7]) * 4096, answers
"""


def test_a1_what_the_kernel_has_no_thread_for_is_done_by_a_call(image: int) -> None:
    with uring(4, [image]) as ring:
        if ring is None:
            return
    command = [sys.executable, "-c", LIMITED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        with no_forks(process.pid):
            process.stdin.write(b"\n")
            process.stdin.close()
            assert process.wait(60) == 0


def test_a12_what_is_in_flight_is_counted_by_its_age() -> None:
    counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
    reading, writing = os.pipe()
    ring = Uring(8, [reading])
    ring.count_in(counters)
    ages = [[counters.handed_since(looks) for looks in (1, 2, 5)]]
    for tag in range(2):
        ring.read(0, [bytearray(1)], 0, tag)
        ring.submit_all()
        counters.advance()
        ages.append([counters.handed_since(looks) for looks in (1, 2, 5)])
    assert ages == [[0, 0, 0], [1, 0, 0], [2, 1, 0]]
    for _ in range(3):
        counters.advance()
    assert counters.handed_since(5) == 1
    os.write(writing, b"x")
    ((_, moved, _),) = ring.collect(wait=True)
    assert moved == 1 and counters.handed_since(1) == 1
    ring.close()
    assert counters.handed_since(1) == 0
    # What a worker leaves that is killed, its successor takes out.
    ring = Uring(8, [reading])
    ring.count_in(counters)
    ring.read(0, [bytearray(1)], 0, 0)
    counters.advance()
    counters.hand_none()
    assert counters.handed_since(1) == 0
    ring.close()
    os.close(reading)
    os.close(writing)
