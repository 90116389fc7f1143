"""A successor begins at the listener's sign, though the dead worker's pidfd is not readable yet."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from tests.pool.test_hangup import BOUND_S, RELEASE, filtered
from vuproc.fd import Fd
from vuproc.pool.ending_process import EndingProcess
from vuproc.pool.forkserver import ForkedProcess, poll_until_readable
from vuproc.pool.history import History
from vuproc.pool.process import WorkerProcess
from vuproc.pool.slots import WorkerSlots
from vuproc.pool.starts import OnReport
from vuproc.vhost_user.config_space import ConfigSpace
from vuproc.workers.control import AnyOrder

pytestmark = pytest.mark.skipif(RELEASE < (6, 11), reason="listeners come late before Linux 6.11")


class Killed:
    """What the forkserver knows of such a process."""

    def exit_code(self, _pid: int, _timeout: float) -> int:
        return -signal.SIGKILL


class Acting(EndingProcess):
    """A worker whose pidfd is an eventfd: it is gone when the test says so."""

    def __init__(self, pid: int) -> None:
        process = ForkedProcess(pid, Fd(os.eventfd(0)), cast(Any, Killed()))
        super().__init__(process, Fd(os.eventfd(0)))
        self.queues: tuple[int, ...] = ()
        self.number = -1
        self.ready, self.overdue = True, None
        self.on_unsettled: Callable[[], None] = lambda: None
        self.told: list[AnyOrder] | None = None

    def assign(self, queues: tuple[int, ...], *, recovered: bool, ahead: bool = False) -> None:
        self.queues = queues

    def catch_up(self, orders: Iterable[AnyOrder]) -> None:
        self.told = list(orders)

    def read(self) -> None:
        pass

    def gone(self) -> None:
        os.eventfd_write(self.pidfd.fileno(), 1)

    def close(self) -> None:
        self._before_close()
        self._close_listener()
        self._stack.close()
        self.pidfd.close()


class Scene:
    """A slot with a worker whose listener is that of a process which has been killed (`hung_up`),
    or of one that lives, and which has done some work.
    """

    def __init__(self, listener: Fd) -> None:
        self.requests = 1
        self.made: list[Acting] = []
        config = ConfigSpace(lambda: b"")
        self.slots = WorkerSlots(
            self._start, [(0,)], lambda _: self.requests, History(config, 1, 8), has_standby=True
        )
        self.slot = self.slots.of(0)
        self.slot.overlaps = lambda: True
        self.slot.spawn()
        (self.first,) = self.made
        self.requests += 1
        self.slots.standby.refill()
        self.first.take_listener(listener)

    def _start(self, _on_report: OnReport) -> WorkerProcess:
        self.made.append(Acting(100 + len(self.made)))
        return cast(WorkerProcess, self.made[-1])

    def close(self) -> None:
        for worker in self.made:
            worker.close()


@contextmanager
def scene(*, hung_up: bool = True) -> Iterator[Scene]:
    with filtered(0) as (pid, pidfd, listener):
        if hung_up:
            os.kill(pid, signal.SIGKILL)
            assert poll_until_readable(pidfd.fileno(), BOUND_S)
        made = Scene(listener.dup())
        try:
            yield made
        finally:
            made.close()


def test_the_standby_has_the_queues_before_the_pidfd_is_readable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with scene() as of:
        of.slots.stopped(of.slot)
        _, standby = of.made
        assert of.slot.worker is cast(WorkerProcess, standby)
        assert standby.queues == (0,) and standby.told is not None
        assert not of.first.wait_end(0) and not of.first.closed
        assert of.slot.exit_unlogged is cast(WorkerProcess, of.first)
        assert "killed by SIGKILL" not in caplog.text
        of.slot.log_exit()  # too early
        assert of.slot.exit_unlogged is not None
        of.first.gone()
        of.slot.log_exit()
        assert "killed by SIGKILL" in caplog.text and of.first.closed


def test_one_that_has_a_thread_left_keeps_its_queues() -> None:
    with scene(hung_up=False) as of:
        of.slots.stopped(of.slot)
        assert of.slot.worker is cast(WorkerProcess, of.first)


def test_a_device_that_has_something_open_waits_for_the_pidfd() -> None:
    with scene() as of:
        of.slot.overlaps = lambda: False
        of.slots.stopped(of.slot)
        assert of.slot.worker is cast(WorkerProcess, of.first)


def test_one_that_had_done_nothing_is_waited_for_since_the_breaker_asks_how_it_ended() -> None:
    with scene() as of:
        of.requests -= 1
        of.slots.stopped(of.slot)
        assert of.slot.worker is cast(WorkerProcess, of.first)
