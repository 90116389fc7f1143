"""A worker with an io_uring: what its death leaves in the kernel, its stop, and its absence."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.soak import soak
from tests.kernel import has_uring
from tests.pool.scripted import Scripted
from vuproc.devices.blk import Blk, BlkOptions
from vuproc.devices.blk_storage import check_direct
from vuproc.errors import RingError, UringUnavailable
from vuproc.fd import Fd
from vuproc.pool.inflight_file import make_records
from vuproc.shm.inflight import record_bytes
from vuproc.shm.memory import GuestMemory
from vuproc.shm.request import Request
from vuproc.shm.uring import Uring
from vuproc.spec.blk import REQUEST_HEADER, SECTOR_SIZE, BlkStatus, BlkType
from vuproc.spec.inflight import split_record_bytes
from vuproc.spec.ring_layout import SPLIT
from vuproc.spec.virtio import Feature
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest
from vuproc.testing.memory import Ram
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.queue import DriverQueue
from vuproc.vhost_user.effects import Inflight, RingSetup
from vuproc.workers import queue_uring, uring_lock
from vuproc.workers.queue import Queue

BOUND_S = 30.0
PAGE = 4096
PAGES = 256
SIZE = 64
ATTEMPTS_AT = 16 + 1
"""Where a record has the attempts of head 0."""


def is_direct(image: Path) -> bool:
    """Whether the image can be had past the page cache; says why not."""
    problem = check_direct(str(image), SECTOR_SIZE)
    if problem is not None:
        print(f"not direct: {problem}")
    return problem is None


@contextmanager
def child(
    program: str, *arguments: object, fds: tuple[int, ...]
) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `program` and says "ready"; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=fds,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def await_end(held: tuple[Fd, int, int]) -> float:
    """Seconds until the kernel has finished with what `held` is the uring_lock of."""
    began = time.monotonic()
    while uring_lock.is_held(*held):
        assert time.monotonic() - began < BOUND_S
        time.sleep(uring_lock.LOOK_S)
    return time.monotonic() - began


WAITING = """
import os, sys, time
from vuproc.fd import Fd
from vuproc.shm.uring import Uring
from vuproc.workers import uring_lock
record, offset, length = map(int, sys.argv[1:])
reading, writing = os.pipe()
held = uring_lock.hold(Fd(os.dup(record)), offset, length)
ring = Uring(8, [reading, held])
held.close()
ring.read(0, [bytearray(8)], 0, 1)
ring.submit_all()
print("ready", flush=True)
time.sleep(1000)
"""


def test_the_witness_stays_until_the_kernel_has_finished() -> None:
    if not has_uring():
        return
    record, size = make_records(2, split_record_bytes(SIZE))
    mine, others = (record, size // 2, size // 2), (record, 0, size // 2)
    assert not uring_lock.is_held(*mine)
    with child(WAITING, record.fileno(), *mine[1:], fds=(record.fileno(),)) as process:
        assert uring_lock.is_held(*mine)
        assert not uring_lock.is_held(*others)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"{await_end(mine) * 1000:.1f} ms after the end of the process")
    assert not uring_lock.is_held(*mine)
    record.close()


READING = """
import mmap, os, sys, time
from vuproc.fd import Fd
from vuproc.shm.uring import Uring
from vuproc.workers import uring_lock
record, memory, pages = map(int, sys.argv[1:4])
image = os.open(sys.argv[4], os.O_RDONLY | os.O_DIRECT)
guest = memoryview(mmap.mmap(memory, pages * 4096))
held = uring_lock.hold(Fd(os.dup(record)), 0, 64)
ring = Uring(pages, [image, held])
held.close()
for n in range(pages):
    ring.read(0, [guest[n * 4096:][:4096]], n * 4096, n)
ring.submit_all()
print("ready", flush=True)
time.sleep(1000)
"""


def test_nothing_arrives_in_guest_memory_once_the_witness_has_gone(tmp_path: Path) -> None:
    """What a killed worker's io_uring still brings comes before that, if after its end."""
    image = tmp_path / "image"
    image.write_bytes(b"i" * PAGE * PAGES)
    fd = os.open(image, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    if not has_uring() or not is_direct(image):
        return
    record, _ = make_records(1, split_record_bytes(SIZE))
    memory = os.memfd_create("guest")
    os.ftruncate(memory, PAGE * PAGES)
    with mmap.mmap(memory, PAGE * PAGES) as guest:
        arguments = (record.fileno(), memory, PAGES, image)
        with child(READING, *arguments, fds=(record.fileno(), memory)) as process:
            process.send_signal(signal.SIGKILL)
            process.wait()
            early = guest[::PAGE].count(b"i")
            took = await_end((record, 0, 64))
            late = guest[::PAGE].count(b"i")
            print(f"{late - early} of {PAGES} reads arrived after the end of the process")
            print(f"the kernel had finished {took * 1000:.1f} ms after it")
            guest[:] = b"g" * len(guest)
            # As many reads of the same disk as were under way.
            direct = os.open(image, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            with mmap.mmap(-1, PAGE) as page, memoryview(page) as view:
                for n in range(PAGES):
                    assert os.preadv(direct, [view], n * PAGE) == PAGE
            os.close(direct)
            assert guest[:] == b"g" * len(guest)
    os.close(memory)
    record.close()


def say(guest: Guest, text: str) -> str:
    return guest.do(0, [text.encode()], [64], timeout_s=BOUND_S).content.decode()


def test_a_successor_waits_for_the_kernel(vuproc_device: ServeDevice) -> None:
    """Somebody has a lock on the records, as an io_uring of the dead worker would have."""
    served = vuproc_device(Scripted)
    with served.guest() as guest:
        kept = guest.submit(0, [b"keep"], [64])
        assert say(guest, "echo 1") == "1"
        folder = f"/proc/{served.pid}/fd"
        (number,) = {n for n in os.listdir(folder) if _is_record(f"{folder}/{n}")}
        with opened(f"{folder}/{number}") as record:
            held = uring_lock.hold(record, 0, record.size)
            try:
                pid = int(say(guest, "pid"))
                os.kill(pid, signal.SIGKILL)
                served.wait_for_line("at work still", BOUND_S)
            finally:
                held.close()
        assert say(guest, "drop") == "dropped"
        assert guest.wait(kept, BOUND_S).content == b"kept"


@contextmanager
def opened(path: str) -> Iterator[Fd]:
    fd = Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    try:
        yield fd
    finally:
        fd.close()


def _is_record(path: str) -> bool:
    try:
        return "vuproc-inflight" in os.readlink(path)
    except OSError:
        return False


def test_a_stop_waits_for_what_the_kernel_has(vuproc_device: ServeDevice, tmp_path: Path) -> None:
    """GET_VRING_BASE in the middle: what was fetched is completed by its answer."""
    image = tmp_path / "image"
    image.write_bytes(b"".join(bytes([n]) * PAGE for n in range(128)))
    options = {"image": str(image), "direct": is_direct(image), "locking": "off"}
    for engine in ("auto", "python"):
        served = vuproc_device({"type": "blk", "engine": engine, **options})
        with served.guest() as guest:
            queue = guest.queues[0]
            headers = [REQUEST_HEADER.pack(type=BlkType.IN, sector=8 * n) for n in range(32)]
            tokens = [queue.submit([header], [PAGE, 1]) for header in headers]
            base = guest.stop_queue(0)
            queue.reap()
            assert queue.in_flight == 32 - base
            for n, token in enumerate(tokens[:base]):
                done = queue.wait(token, BOUND_S)
                assert done.content == bytes([n]) * PAGE + bytes([BlkStatus.OK])


def test_reset_and_reconnect_with_requests_in_the_kernel(
    vuproc_device: ServeDevice, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(PAGE) * 128)
    served = vuproc_device({"type": "blk", "image": str(image), "direct": is_direct(image)})
    for _ in range(5):
        with served.guest() as guest:
            for n in range(32):
                header = REQUEST_HEADER.pack(type=BlkType.OUT, sector=8 * n)
                guest.queues[0].submit([header, b"r" * PAGE], [1])
    with served.guest() as guest:
        assert len(Block(guest).read(0, PAGE)) == PAGE


@pytest.mark.timeout(180)
@pytest.mark.parametrize("disk", ["direct", "native"])
def test_soak_of_a_direct_image(tmp_path: Path, disk: str) -> None:
    """Kills while the kernel has up to 16 requests a queue."""
    result = soak(kills=15, queues=2, seed=8, period_s=0.1, disk=disk, directory=tmp_path)
    print(result)
    assert result.kills >= 15
    assert not result.faults


# One queue in this process.


class Bench:
    """A queue of a disk, as the worker's loop has it."""

    def __init__(self, image: Path, engine: str) -> None:
        self.device = Blk(BlkOptions(image=str(image), engine=engine))  # type: ignore[arg-type]
        self.errors: list[BaseException] = []
        self.broken: list[str] = []
        self.ram = Ram(4 << 20)
        self.memory = GuestMemory.from_regions(
            (r.guest_addr, r.size, r.user_addr, r.mmap_offset, r.fd.fileno())
            for r in self.ram.regions
        )
        self.driver = DriverQueue(self.ram, 0, SIZE)
        self.record, _ = make_records(1, split_record_bytes(SIZE))
        self.device.shared = self.device.shared_files()
        self.device.setup(0)
        self.queue = Queue(0, self.device, None, SIZE, self._fail, self._skip, self._break)
        self.queue.native = self.device.native(0)

    def start(self, base: int | None = 0) -> None:
        fd = self.record.dup()
        setup = RingSetup(
            index=0,
            size=SIZE,
            desc=self.driver.desc,
            avail=self.driver.avail,
            used=self.driver.used,
            base=base,
            enabled=True,
            kick=None,
            call=None,
            err=None,
            inflight=Inflight(fd, 0, SIZE),
        )
        try:
            self.queue.start(setup, SPLIT, self.memory, int(Feature.VERSION_1))
        except RingError:
            fd.close()
            raise

    def read(self, sector: int) -> int:
        header = REQUEST_HEADER.pack(type=BlkType.IN, sector=sector)
        return self.driver.submit([header], [SECTOR_SIZE, 1])

    def serve(self) -> None:
        self.queue.run()
        while self.queue.in_flight:
            assert select.select([self.queue.completions], [], [], BOUND_S)[0]
            self.queue.publish()

    def close(self) -> None:
        self.queue.drop()
        self.device.teardown()
        for file in self.device.shared.values():
            file.close()
        self.record.close()
        self.driver.close()
        self.ram.close()

    def _fail(self, request: Request, error: BaseException) -> None:
        self.errors.append(error)
        self.device.fail(request, error)

    def _skip(self, request: Request, why: str, attempts: int) -> None:
        raise AssertionError(why)

    def _break(self, queue: int, cause: str) -> None:
        self.broken.append(cause)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"".join(bytes([n]) * SECTOR_SIZE for n in range(64)))
    return path


@pytest.mark.parametrize("engine", ["io_uring", "python"])
def test_started_again_and_again(image: Path, engine: str) -> None:
    bench = Bench(image, engine)
    for turn in range(5):
        bench.start(2 * turn)
        tokens = [bench.read(turn), bench.read(turn + 1)]
        bench.serve()
        for n, token in enumerate(tokens):
            assert bench.driver.wait(token).content == bytes([turn + n]) * SECTOR_SIZE + b"\0"
        assert bench.queue.stop() == (2 * turn + 2, 0)
        assert bench.queue.completions == -1
    bench.close()


def test_no_io_uring_means_blocking_calls(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(entries: int, files: object) -> Uring:
        raise UringUnavailable("set up", 38, "Function not implemented")

    monkeypatch.setattr(queue_uring, "Uring", refuse)
    bench = Bench(image, "io_uring")
    bench.start()
    token = bench.read(5)
    bench.serve()
    assert bench.driver.wait(token).content == b"\5" * SECTOR_SIZE + b"\0"
    assert "no io_uring: set up: function not implemented" in caplog.text
    bench.close()


def test_no_witness_means_blocking_calls(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who could not tell its successor must not leave anything in the kernel."""

    def refuse(*record: object) -> Fd:
        raise PermissionError(13, "no")

    monkeypatch.setattr(uring_lock, "hold", refuse)
    bench = Bench(image, "io_uring")
    bench.start()
    assert bench.queue.completions == -1
    token = bench.read(6)
    bench.serve()
    assert bench.driver.wait(token).content == b"\6" * SECTOR_SIZE + b"\0"
    bench.close()


def test_a_ring_that_breaks_lets_go_of_its_io_uring(image: Path) -> None:
    bench = Bench(image, "io_uring")
    bench.start()
    bench.read(5)
    bench.queue.run()
    # More than the ring is long.
    where = bench.driver.avail - bench.ram.regions[0].user_addr + 2
    struct.pack_into("<H", bench.ram.regions[0].buffer, where, 1000)
    bench.queue.ready = True
    bench.queue.run()
    assert len(bench.broken) == 1
    assert bench.queue.completions == -1
    assert bench.queue.native is not None
    assert bench.queue.native.uring_of(0) is None
    bench.close()


def test_a_recovered_ring_with_a_witness_is_refused_after_a_while(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uring_lock, "PATIENCE_S", 0.05)
    bench = Bench(image, "sync")
    bench.start()
    dead = bench.queue
    # Fetched and in flight: what a worker leaves that dies here.
    assert dead._ring is not None
    token = bench.read(9)
    dead._ring.drain(lambda request: request.defer(), bench._fail, 1)
    held = uring_lock.hold(bench.record, 0, record_bytes(SIZE))
    bench.queue = Queue(0, bench.device, None, SIZE, bench._fail, bench._skip, bench._break)
    bench.queue.native = bench.device.native(0)
    with pytest.raises(RingError, match="at work still"):
        bench.start(None)
    assert not bench.queue.started
    held.close()
    bench.start(None)
    bench.serve()
    assert bench.driver.wait(token).content == b"\x09" * SECTOR_SIZE + b"\0"
    dead.drop()
    bench.close()


def test_a12_what_io_uring_does_not_finish_is_to_blame_for_the_worker_s_end(image: Path) -> None:
    """The image is one that never answers; the record says who died over what."""
    if not has_uring():
        return
    bench = Bench(image, "io_uring")
    reading, writing = os.pipe()
    (fd,) = bench.device.uring_files(0)
    os.dup2(reading, fd if isinstance(fd, int) else fd.fileno())
    bench.start()
    bench.read(0)
    bench.queue.run()
    bench.queue.submit()
    assert bench.queue.in_flight == 1
    # The request is the ring's first, and so is its descriptor.
    assert os.pread(bench.record.fileno(), 1, ATTEMPTS_AT) == b"\0"
    for count in (1, 2):
        assert bench.queue.blame(0) == 1
        assert os.pread(bench.record.fileno(), 1, ATTEMPTS_AT)[0] == count
    assert bench.queue.blame(1) == 0
    bench.close()
    os.close(reading)
    os.close(writing)


def test_locks_of_the_witness_are_the_open_files(tmp_path: Path) -> None:
    """Shared among rings, so that a new one need not wait for an idle one's end."""
    record, size = make_records(1, split_record_bytes(SIZE))
    first, second = uring_lock.hold(record, 0, size), uring_lock.hold(record, 0, size)
    first.close()
    assert uring_lock.is_held(record, 0, size)
    second.close()
    assert not uring_lock.is_held(record, 0, size)
    assert fcntl.fcntl(record.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    record.close()
