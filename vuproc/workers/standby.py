"""A worker in waiting: a process that has imported and made the device, and needs only its queues.

Replacing a dead worker then costs one message rather than a start of Python code.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from vuproc.workers.supervise import (
    SETUP_DEADLINE,
    WorkerLost,
    WorkerProcess,
    WorkerRefused,
    WorkerSetupError,
)

log = logging.getLogger("vuproc.master")

RETRY_S = 1.0
"""Seconds after the death of a standby before the next is started."""
LEAVE_S = 2.0
"""Seconds a standby has to leave."""


class Standby:
    """Keeps one worker ready. `start` starts a process that prepares by itself."""

    def __init__(self, start: Callable[[], WorkerProcess]) -> None:
        self.worker: WorkerProcess | None = None
        self.restarts = 0
        self.start_at = 0.0
        self._start = start

    def take(self, queues: tuple[int, ...]) -> WorkerProcess:
        """A worker that was told to serve `queues`: the one in waiting, else a new one.

        Raises `WorkerSetupError`, as the worker's `assigned` does.
        """
        worker, self.worker = self.worker, None
        if worker is None:
            worker = self._start()
        worker.assign(queues)
        return worker

    def refill(self) -> None:
        """Start the next one if nobody is waiting."""
        if self.worker is not None or time.monotonic() < self.start_at:
            return
        try:
            self.worker = self._start()
        except (WorkerSetupError, OSError) as error:
            log.error("no standby: %s", error)
            self.restarts += 1
            self.start_at = time.monotonic() + RETRY_S

    def wait_ready(self) -> None:
        """Wait until the one in waiting has made its device."""
        if self.worker is not None:
            try:
                self.worker.prepared(SETUP_DEADLINE)
            except (WorkerLost, WorkerRefused) as error:
                self.died(str(error))

    def heard(self) -> None:
        """Its control channel is readable."""
        if self.worker is not None:
            try:
                self.worker.read()
            except WorkerLost as error:
                self.died(str(error))

    def died(self, cause: str = "died") -> None:
        """It ended by itself, or is to."""
        worker, self.worker = self.worker, None
        if worker is None:
            return
        worker.kill()
        log.warning("standby: worker %d ended (%s; %s)", worker.pid, cause, worker.ending())
        worker.close()
        self.restarts += 1
        self.start_at = time.monotonic() + RETRY_S

    def stop(self) -> None:
        """End it."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.exit(LEAVE_S)
