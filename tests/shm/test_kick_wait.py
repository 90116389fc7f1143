"""A worker's sleep: what a kick is served by without Python, and all that ends it."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self

import pytest

from tests.conformance.checks import until
from tests.shm.guest import DATA, Guest, fail
from vuproc.devices.blk_native import NativeBlk
from vuproc.errors import RingError
from vuproc.shm.counters import BLOCK_SIZE, QueueCounters
from vuproc.shm.kick_wait import KickWait
from vuproc.shm.spin import Spin
from vuproc.spec.blk import BlkStatus

SECTOR, SECTORS = 512, 64
BUDGET, SLICE_NS = 100, 60_000_000_000
CALL_S = 10.0
NEVER_S = 30.0
"""A sleep that is not ended by what is to end it is over then, and says so."""


class Stage:
    """A guest, a ring that a native disk serves, and a poll set with its kick and another
    descriptor in it.
    """

    def __init__(self, guest: Guest, *, readable: bool = True) -> None:
        self.guest = guest
        self.image = os.memfd_create("image", os.MFD_CLOEXEC)
        for sector in range(SECTORS):
            os.pwrite(self.image, bytes([sector]) * SECTOR, sector * SECTOR)
        if not readable:
            writable = os.open(f"/proc/self/fd/{self.image}", os.O_WRONLY | os.O_CLOEXEC)
            os.close(self.image)
            self.image = writable
        self.counters = QueueCounters(bytearray(BLOCK_SIZE), 0)
        self.ring = guest.ring(0, base=0, counters=self.counters)
        self.device = NativeBlk(self.image, SECTORS * SECTOR)
        self.kick = os.eventfd(0, os.EFD_CLOEXEC)
        self.other = os.eventfd(0, os.EFD_CLOEXEC)
        self.polls = select.epoll()
        self.polls.register(self.kick, select.EPOLLIN)
        self.polls.register(self.other, select.EPOLLIN)
        self.kicks = KickWait(self.polls.fileno())
        self.spin = Spin("off", None, 1)

    def __enter__(self) -> Self:
        assert self.ring.serve_native(self.device, fail, BUDGET) is False
        assert self.ring.arm() is False
        return self

    def __exit__(self, *_: object) -> None:
        self.ring.stop()
        self.polls.close()
        self.counters.release()
        for fd in (self.kick, self.other, self.image):
            os.close(fd)

    def serve(self, due: float | None = NEVER_S, budget: int = BUDGET) -> bool:
        return self.kicks.serve(self.ring, self.kick, self.spin, due, budget, SLICE_NS)

    def read(self, head: int, sector: int) -> None:
        """Offer a read of a sector, without a kick."""
        at = DATA + 1024 * head
        self.guest.write(at, bytes(8) + sector.to_bytes(8, "little"))
        self.guest.submit(head, [(at, 16, False), (at + 16, SECTOR + 1, True)])

    def content(self, head: int) -> bytes:
        return self.guest.read(DATA + 1024 * head + 16, SECTOR + 1)

    def await_call(self) -> None:
        """Read the call descriptor, once it is written to."""
        poller = select.poll()
        poller.register(self.guest.call, select.POLLIN)
        assert poller.poll(CALL_S * 1000)
        os.eventfd_read(self.guest.call)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Guest(8) as guest, Stage(guest) as made:
        yield made


def test_kicks_are_served_until_there_is_something_else(stage: Stage) -> None:
    def drive() -> None:
        try:
            for sector in range(SECTORS):
                stage.read(0, sector)
                os.eventfd_write(stage.kick, 1)
                stage.await_call()
                assert stage.guest.reap() == [(0, SECTOR + 1)]
                assert stage.content(0) == bytes([sector]) * SECTOR + b"\0"
        finally:
            os.eventfd_write(stage.other, 1)

    with in_thread(drive):
        # It comes back after a while, too.
        while not select.select([stage.other], [], [], 0)[0]:
            assert stage.serve() is False
    seen = stage.counters.snapshot()
    assert (seen.requests, seen.calls) == (SECTORS, SECTORS)
    # A request that comes while the one before is shown needs no kick.
    assert 0 < seen.kicks <= SECTORS
    assert stage.counters.count_awake() == 1 and stage.ring.quiet


def test_a_request_without_a_kick_is_not_looked_for(stage: Stage) -> None:
    stage.read(0, 1)
    assert stage.serve(due=0.01) is False
    assert stage.guest.reap() == []


def test_a_timer_that_is_far_off_is_not_early(stage: Stage) -> None:
    """Most of the way is waited for in milliseconds (`LONG_NS`)."""
    began = time.monotonic()
    assert stage.serve(due=0.13) is False
    assert time.monotonic() - began >= 0.13


@pytest.mark.parametrize("due", [0.01, None])
def test_a_driver_that_kicks_all_the_time_keeps_no_timer_waiting(
    stage: Stage, due: float | None
) -> None:
    ended = threading.Event()

    def flood() -> None:
        while not ended.is_set():
            os.eventfd_write(stage.kick, 1)

    with in_thread(flood):
        assert stage.serve(due) is False
        ended.set()
    assert stage.counters.snapshot().kicks


def test_what_is_there_beside_a_kick_keeps_nobody_waiting(stage: Stage) -> None:
    """Both are there at each sleep, and each ends one in time."""
    os.eventfd_write(stage.other, 1)
    for sector in range(4):
        stage.read(0, sector)
        os.eventfd_write(stage.kick, 1)
        for _ in range(2):
            assert stage.serve() is False
        assert stage.guest.reap() == [(0, SECTOR + 1)]


def test_a_turn_that_is_over_says_that_there_is_more(stage: Stage) -> None:
    for head in (0, 2, 4):
        stage.read(head, head)
    os.eventfd_write(stage.kick, 1)
    assert stage.serve(budget=2) is True
    assert len(stage.guest.reap()) == 2
    assert stage.ring.serve_native(stage.device, fail, BUDGET) is False
    assert len(stage.guest.reap()) == 1


def test_a_command_ends_it_with_more_to_do(stage: Stage) -> None:
    """It is counted after the sleep has begun, and lies in a channel that nobody has read."""
    stage.read(0, 1)
    stage.read(2, 2)
    stage.counters.set_awake(True)

    def command() -> None:
        assert until(lambda: not stage.counters.count_awake())
        stage.counters.count_command()
        os.eventfd_write(stage.kick, 1)

    with in_thread(command):
        assert stage.serve() is True
    assert len(stage.guest.reap()) == 1 and stage.counters.command_pending


def test_failures_end_it() -> None:
    """Somebody is to look at them, for the log. The driver has its answer first."""
    with Guest(8) as guest, Stage(guest, readable=False) as stage:
        stage.read(0, 1)
        os.eventfd_write(stage.kick, 1)
        assert stage.serve(due=None) is False
        assert stage.guest.reap() == [(0, 1)] and stage.content(0)[-1] == BlkStatus.IOERR
        assert stage.device.failure == errno.EBADF
        assert stage.counters.snapshot().errors == 1


def test_a_ring_that_its_driver_breaks_is_said_to_be(stage: Stage) -> None:
    stage.guest.set_avail_idx(40_000)
    os.eventfd_write(stage.kick, 1)
    with pytest.raises(RingError):
        stage.serve()
    assert stage.ring.broken is not None and not stage.ring.quiet
    with pytest.raises(RuntimeError, match="takes Python"):
        stage.serve()


def test_a_ring_that_no_native_device_has_served_is_not_quiet(stage: Stage) -> None:
    with Guest(8) as guest:
        ring = guest.ring()
        assert not ring.quiet
        with pytest.raises(RuntimeError, match="takes Python"):
            stage.kicks.serve(ring, stage.kick, stage.spin, 0.0, BUDGET, SLICE_NS)


def test_a_kick_descriptor_at_its_end_is_for_others_to_see(stage: Stage) -> None:
    ends = os.pipe()
    stage.polls.register(ends[0], select.EPOLLIN)
    os.write(ends[1], bytes(8))
    assert stage.kicks.wait(stage.counters, ends[0], stage.spin, NEVER_S, 0) is True
    os.write(ends[1], bytes(8))
    os.close(ends[1])
    # Readable and hung up, then hung up alone: the loop tells the two apart.
    for _ in range(2):
        assert stage.kicks.wait(stage.counters, ends[0], stage.spin, NEVER_S, 0) is False
        assert stage.polls.poll(0)
        os.read(ends[0], 8)
    os.close(ends[0])


def test_wait_is_for_a_kick_or_anything_else(stage: Stage) -> None:
    wait = stage.kicks.wait
    assert wait(stage.counters, stage.kick, stage.spin, 0.001, 0) is False
    os.eventfd_write(stage.kick, 3)
    assert wait(stage.counters, stage.kick, stage.spin, None, 0) is True
    assert stage.counters.snapshot().kicks == 1
    assert wait(None, stage.kick, stage.spin, 0.0, 0) is False
    os.eventfd_write(stage.other, 1)
    assert wait(stage.counters, stage.kick, stage.spin, None, 0) is False


def test_a_look_that_finds_something_is_counted_and_one_that_does_not_is_not(stage: Stage) -> None:
    look_ns = 50_000_000
    stage.read(0, 1)
    assert stage.ring.spin(look_ns) is True
    assert stage.ring.hits == 1
    assert stage.ring.serve_native(stage.device, fail, BUDGET, look_ns) is False
    assert stage.ring.spin(look_ns) is False
    assert stage.ring.hits == 1


@contextmanager
def in_thread(function: Callable[[], None]) -> Iterator[None]:
    """Run a function beside the block, and raise what it has raised."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function)
        yield
        future.result(NEVER_S)
