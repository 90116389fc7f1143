"""A worker in waiting: a process that has imported and made the device, and needs only its queues.

Replacing a dead worker then costs one message rather than a start of Python code.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from vuproc.pool.forkserver import CannotStart
from vuproc.pool.post import Post
from vuproc.pool.process import END_GRACE, WorkerLost, WorkerProcess, WorkerSetupError

log = logging.getLogger("vuproc.master")

RETRY_S = 1.0
"""Seconds after the death of a standby before the next is started."""
AFTERWARDS_S = 0.01
"""Seconds from a standby's turn to the start of the next: a fork takes a CPU that the worker needs
which a driver waits for.
"""
LEAVE_S = 2.0
"""Seconds a standby has to leave."""


class Standby(Post):
    """Keeps one worker ready. `start` starts a process that prepares by itself. `lasting`: there is
    always to be one; otherwise while somebody has it `wanted`.
    """

    def __init__(self, start: Callable[[], WorkerProcess], *, lasting: bool = True) -> None:
        super().__init__()
        self.wanted = lasting
        self.ahead: Callable[[], tuple[int, ...]] = lambda: ()
        """Tells which queues the one in waiting is to set up at once, before it is their turn; ()
        leaves that until then."""
        self._lasting = lasting
        self.restarts = 0
        self.start_at = 0.0
        self._start = start
        self._lack = ""

    def take(self, queues: tuple[int, ...], recovered: bool) -> WorkerProcess:
        """A worker that was told to serve `queues`, ready or on its way: the one in waiting, else a
        new one. `recovered`: another worker has served them before.

        Raises `CannotStart`, or `WorkerLost` if even a new one is gone at once.
        """
        worker = self.worker
        if worker is not None and worker.queues in ((), queues):
            self.worker = None
            try:
                if not worker.queues:
                    worker.assign(queues, recovered=recovered)
                self.start_at = max(self.start_at, time.monotonic() + AFTERWARDS_S)
                return worker
            except WorkerLost as error:
                log.warning("the standby was of no use: %s", error)
                _end(worker)
        worker = self._start()
        try:
            worker.assign(queues, recovered=recovered)
        except WorkerLost:
            _end(worker)
            raise
        return worker

    def assign(self, queues: tuple[int, ...]) -> None:
        """Have the one in waiting set up `queues`; from then on it waits for their slot alone."""
        if self.worker is not None:
            try:
                self.worker.assign(queues, recovered=True, ahead=True)
            except WorkerLost as error:
                self.died(str(error))

    def refill(self) -> None:
        """Start the next one if nobody is waiting, and one is wanted."""
        if not self.wanted or self.worker is not None or time.monotonic() < self.start_at:
            return
        try:
            self.worker = self._start()
            self._lack = ""
        except CannotStart as error:
            if error.reason != self._lack:
                log.error("no standby: %s; trying again", error)
            self._lack = error.reason
            self.restarts += 1
            self.start_at = time.monotonic() + RETRY_S

    def due(self) -> float:
        """Seconds until `tend` should be called; infinity if there is nothing to wait for."""
        if self.worker is None:
            if not self.wanted:
                return float("inf")
            return max(0.0, self.start_at - time.monotonic())
        overdue = self.worker.overdue
        return float("inf") if overdue is None else overdue

    def tend(self) -> None:
        """Replace one that takes too long, and start the next if it is time."""
        if self.worker is not None and self.worker.overdue == 0.0:
            self.heard()  # its answer may be there, unread
        if self.worker is not None and self.worker.overdue == 0.0:
            self.died(self.worker.too_slow())
        self.refill()

    def wait_ready(self) -> None:
        """Wait until the one in waiting has made its device."""
        if self.worker is not None:
            try:
                self.worker.settle()
            except (WorkerLost, WorkerSetupError) as error:
                self.died(str(error))
            self._set_up_ahead()

    def heard(self) -> None:
        """Its control channel is readable."""
        if self.worker is not None:
            try:
                self.worker.read()
            except (WorkerLost, WorkerSetupError) as error:
                self.died(str(error))
            self._set_up_ahead()

    def _set_up_ahead(self) -> None:
        worker = self.worker
        if worker is not None and worker.ready and not worker.queues:
            queues = self.ahead()
            if queues:
                self.assign(queues)

    def ended(self) -> None:
        """It ended by itself; it may have said why."""
        self.heard()
        self.died()

    def died(self, cause: str = "died") -> None:
        """It is to end, or has."""
        worker, self.worker = self.worker, None
        if worker is None:
            return
        by_itself = worker.wait_end(END_GRACE)
        stack = "" if by_itself else worker.stack()
        worker.kill()
        how = worker.ending() if by_itself else "killed"
        log.warning("standby: worker %d ended (%s; %s)", worker.pid, cause, how)
        if stack:
            log.warning("standby: worker %d was at\n%s", worker.pid, stack)
        worker.close()
        self.restarts += 1
        self.start_at = time.monotonic() + RETRY_S

    def rest(self) -> None:
        """It is not wanted any more, unless there is always to be one."""
        self.wanted = self._lasting
        if self.wanted:
            self.refill()
        else:
            self.stop()

    def stop(self) -> None:
        """End it."""
        worker = self.release()
        if worker is not None:
            worker.exit(LEAVE_S)

    def release(self) -> WorkerProcess | None:
        """Give it to the caller, who ends it."""
        worker, self.worker = self.worker, None
        return worker


def _end(worker: WorkerProcess) -> None:
    worker.kill()
    worker.close()
