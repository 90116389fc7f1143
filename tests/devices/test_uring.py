"""Requests that the kernel finishes: by a handler in Python, and by the native disk."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.devices.inline import KERNEL_BOUND_S, QUEUE_SIZE, Inline
from tests.kernel import has_uring
from vuproc import Device, Request
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.errors import RequestFinished
from vuproc.shm.uring import Uring
from vuproc.spec.blk import REQUEST_HEADER, BlkStatus, BlkType
from vuproc.testing.queue import Completion

PAGE = 4096

Act = Callable[[Request], None]


class Handed(Device):
    """Does with a request what the test says. `files` are known to io_uring."""

    device_id = 42

    def __init__(self, files: Sequence[int]) -> None:
        super().__init__()
        self.files = files
        self.act: Act = lambda request: None
        self.errors: list[BaseException] = []

    def uring_files(self, queue: int) -> Sequence[int]:
        return self.files

    def handle(self, request: Request) -> None:
        self.act(request)

    def fail(self, request: Request, error: BaseException) -> None:
        self.errors.append(error)
        request.put(-1, b"\1")
        request.finish()


def whole(done: Completion) -> bytes:
    """All writable bytes, whatever the device says it wrote."""
    return b"".join(done.data)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "image"
    path.write_bytes(b"".join(bytes([n]) * PAGE for n in range(8)))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture(params=["kernel", "blocking"])
def handed(image: int, request: pytest.FixtureRequest) -> Iterator[Inline]:
    """The same, whether the worker has an io_uring or not."""
    inline = Inline(Handed([image] if request.param == "kernel" else []))
    yield inline
    inline.close()


def test_preadv_then_the_status(handed: Inline, image: int) -> None:
    def act(request: Request) -> None:
        assert request.read() == b"ask"
        request.finish_preadv(image, 3 * PAGE - 1, 10, done=b"ok")
        assert request.finished
        for verb in (request.read, request.finish, request.defer):
            with pytest.raises(RequestFinished):
                verb()

    handed.device.act = act
    done = handed.chain([b"ask"], [4, 20])
    assert whole(done) == b"\2" + b"\3" * 9 + bytes(12) + b"ok"
    assert done.written == 12
    assert handed.errors == []


def test_preadv_of_all_there_is_room_for(handed: Inline, image: int) -> None:
    handed.device.act = lambda request: request.finish_preadv(image, 0, done=b"\0")
    done = handed.chain([], [PAGE, 1, PAGE])
    assert done.written == 2 * PAGE + 1
    assert done.content == b"\0" * PAGE + b"\1" * PAGE + b"\0"


def test_pwritev_plain_and_durable(handed: Inline, image: int) -> None:
    for durable in (False, True):
        data = os.urandom(100)

        def act(request: Request, durable: bool = durable) -> None:
            request.skip(5)
            request.finish_pwritev(image, 50, 90, done=b"\0", durable=durable)

        handed.device.act = act
        done = handed.chain([data[:30], data[30:]], [1])
        assert (done.written, done.content) == (1, b"\0")
        assert os.pread(image, 90, 50) == data[5:95]


def test_pwritev_with_nothing_to_answer(handed: Inline, image: int) -> None:
    handed.device.act = lambda request: request.finish_pwritev(image, 0)
    assert handed.chain([b"word"], []).written == 0
    assert os.pread(image, 4, 0) == b"word"


def test_fdatasync(handed: Inline, image: int) -> None:
    handed.device.act = lambda request: request.finish_fdatasync(image, done=b"\0")
    assert handed.chain([], [3]).written == 1


def test_nothing_to_move_is_done_at_once(handed: Inline, image: int) -> None:
    handed.device.act = lambda request: request.finish_preadv(image, 0, 0, done=b"\0")
    assert handed.chain([], [1]).written == 1


def test_the_end_of_the_file_is_an_error(handed: Inline, image: int) -> None:
    handed.device.act = lambda request: request.finish_preadv(image, 8 * PAGE - 10, 30, done=b"\0")
    done = handed.chain([], [64])
    (error,) = handed.errors
    assert isinstance(error, OSError)
    assert (error.errno, done.written) == (errno.EIO, 11)
    assert whole(done)[-1:] == b"\1"


def test_an_error_of_the_kernel_is_the_devices_to_answer(tmp_path: Path) -> None:
    readonly = os.open(tmp_path / "file", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for files in ([readonly], []):
        inline = Inline(Handed(files))
        inline.device.act = lambda request: request.finish_pwritev(readonly, 0, done=b"\0")
        assert inline.chain([b"data"], [1]).content == b"\1"
        (error,) = inline.errors
        assert isinstance(error, OSError)
        assert error.errno == errno.EBADF
        inline.close()
    os.close(readonly)


@pytest.mark.parametrize("n", [31, 1 << 40])
def test_what_does_not_fit_is_refused(handed: Inline, image: int, n: int) -> None:
    handed.device.act = lambda request: request.finish_preadv(image, 0, n, done=b"\0\0")
    assert whole(handed.chain([], [32]))[-1:] == b"\1"
    handed.device.act = lambda request: request.finish_pwritev(image, 0, n, done=b"\0")
    assert whole(handed.chain([b"x" * 30], [32]))[-1:] == b"\1"
    handed.device.act = lambda request: request.finish_pwritev(image, 0, 1, done=b"\0" * 33)
    assert whole(handed.chain([b"x" * 30], [32]))[-1:] == b"\1"
    assert [type(error) for error in handed.errors] == [ValueError] * 3


def test_a_chain_of_more_pieces_than_one_call_takes(handed: Inline, image: int) -> None:
    handed.device.act = lambda request: request.finish_preadv(image, 1, done=b"\0")
    done = handed.chain([], [7] * (QUEUE_SIZE - 1), indirect=True)
    assert done.written == 7 * (QUEUE_SIZE - 1)
    assert done.content[:-1] == os.pread(image, 7 * (QUEUE_SIZE - 1) - 1, 1)


def test_memory_that_is_not_aligned_takes_the_other_file(tmp_path: Path) -> None:
    """Two different files show which one was used."""
    paths = [tmp_path / name for name in ("direct", "buffered")]
    fds = []
    for path in paths:
        path.write_bytes(path.name[:1].encode() * 4 * PAGE)
        fds.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    direct, buffered = fds
    inline = Inline(Handed([direct]))
    inline.device.act = lambda request: request.finish_preadv(
        direct, 0, 512, done=b"\0", buffered=buffered
    )
    assert inline.chain([], [512, 1]).content[:1] == b"d"
    inline.device.act = lambda request: request.finish_preadv(
        direct, 0, 511, done=b"\0", buffered=buffered
    )
    assert inline.chain([], [511, 1]).content[:1] == b"b"
    inline.close()
    for fd in fds:
        os.close(fd)


def test_requests_come_back_in_any_order(image: int) -> None:
    if not has_uring():
        return
    reading, writing = os.pipe()
    inline = Inline(Handed([image, reading]))

    def act(request: Request) -> None:
        which = request.read()
        request.finish_preadv(reading if which == b"slow" else image, 0, 4, done=b"\0")

    inline.device.act = act
    slow = [inline.queue.submit([b"slow"], [5]) for _ in range(3)]
    fast = [inline.queue.submit([b"fast"], [5]) for _ in range(3)]
    inline.ring.drain(inline.device.handle, inline._fail, 16)
    uring = inline.ring.uring
    assert uring is not None
    while inline.ring.in_flight > 3:
        assert select.select([uring], [], [], KERNEL_BOUND_S)[0]
        inline.ring.collect(inline._fail)
    assert [inline.queue.wait(token).content for token in fast] == [bytes(5)] * 3
    assert inline.queue.in_flight == 3
    os.write(writing, b"abcd" * 3)
    inline._await_kernel()
    assert [inline.queue.wait(token).content for token in slow] == [b"abcd\0"] * 3
    inline.close()
    os.close(reading)
    os.close(writing)


def test_a_ring_that_stops_takes_its_requests_back_from_the_kernel(image: int) -> None:
    if not has_uring():
        return
    reading, writing = os.pipe()
    inline = Inline(Handed([reading]))
    kept: list[Request] = []

    def act(request: Request) -> None:
        kept.append(request)
        request.finish_preadv(reading, 0, 4, done=b"\0")

    inline.device.act = act
    for _ in range(20):
        inline.queue.submit([b"slow"], [5])
    inline.ring.drain(inline.device.handle, inline._fail, 32)
    assert inline.ring.in_flight == 20
    inline.ring.stop()
    # The kernel has let go of it: it is there for others, and no request takes it.
    os.write(writing, b"left")
    assert os.read(reading, 9) == b"left"
    assert inline.ring.uring is None
    assert all(request.finished for request in kept)
    with pytest.raises(RequestFinished):
        kept[0].finish()
    inline.close()
    os.close(reading)
    os.close(writing)


# The native disk.


def test_the_native_disk_answers_in_any_order_and_lets_go_at_the_end(tmp_path: Path) -> None:
    if not has_uring():
        return
    path = tmp_path / "image"
    path.write_bytes(bytes(8 * PAGE))
    reading, writing = os.pipe()
    inline = Inline(Blk(BlkOptions(image=str(path), engine="io_uring", serial="disk")))
    assert inline.native is not None
    # A disk that answers when the test wants it to.
    inline._drop_uring()
    inline._uring = Uring(QUEUE_SIZE, [reading])
    inline.native.set_uring(0, inline._uring)
    header = REQUEST_HEADER.pack(type=BlkType.IN, sector=0)
    slow = [inline.queue.submit([header], [512, 1]) for _ in range(4)]
    fast = inline.queue.submit([REQUEST_HEADER.pack(type=BlkType.GET_ID, sector=0)], [20, 1])
    inline.ring.serve_native(inline.native, inline._fail, 16)
    assert inline.queue.wait(fast).content.startswith(b"disk")
    assert inline.ring.in_flight == 4
    # In parts that are no sectors, for whichever comes first: each ends with a whole one.
    for part in (b"a" * 100, b"a" * 1000, b"a" * 948):
        os.write(writing, part)
    inline._await_kernel()
    for token in slow:
        assert inline.queue.wait(token).content == b"a" * 512 + b"\0"
    inline.queue.submit([header], [512, 1])
    inline.ring.serve_native(inline.native, inline._fail, 16)
    inline.ring.stop()
    assert inline.native.uring_of(0) is None
    os.write(writing, b"left")
    assert os.read(reading, 9) == b"left"
    inline.close()
    os.close(reading)
    os.close(writing)


def test_the_native_disk_blocks_where_there_is_no_io_uring(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 8 * PAGE)
    inline = Inline(Blk(BlkOptions(image=str(path), engine="io_uring")))
    assert inline.native is not None
    inline.native.set_uring(0, None)
    result = inline.block(BlkType.IN, 1, in_=[PAGE])
    assert (result.status, result.data) == (BlkStatus.OK, b"x" * PAGE)
    assert inline.block(BlkType.OUT, 1, [b"y" * PAGE]).status == BlkStatus.OK
    assert inline.block(BlkType.FLUSH).status == BlkStatus.OK
    assert path.read_bytes()[512 : 512 + PAGE] == b"y" * PAGE
    inline.close()


@pytest.mark.parametrize("depth", [1, 64, QUEUE_SIZE // 4])
def test_many_at_a_time(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"".join(bytes([n]) * 512 for n in range(64)))
    for engine in ("io_uring", "python"):
        inline = Inline(Blk(BlkOptions(image=str(path), engine=engine)))
        tokens = {}
        for n in range(depth):
            header = REQUEST_HEADER.pack(type=BlkType.IN, sector=n % 64)
            tokens[inline.queue.submit([header], [512, 1])] = n % 64
        if inline.native is not None:
            inline.ring.serve_native(inline.native, inline._fail, 256)
        else:
            inline.ring.drain(inline.device.handle, inline._fail, 256)
        inline._await_kernel()
        for token, n in tokens.items():
            assert inline.queue.wait(token).content == bytes([n]) * 512 + b"\0"
        inline.close()
