"""The post of a device's helper: a process of its own for what no queue waits for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from vuproc.pool.forkserver import CannotStart
from vuproc.pool.post import Post
from vuproc.pool.process import END_GRACE, WorkerLost, WorkerProcess, WorkerSetupError

log = logging.getLogger("vuproc.master")

RETRY_S: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds from a helper's end to the next start; the last for all further ones in a row."""
WELL_S = 30.0
"""Seconds of a life after which an end is not in a row with those before."""


class Helper(Post):
    """Keeps one helper at work. `start` starts a process that prepares by itself.

    `end_s`: seconds that it has at our end.
    """

    def __init__(self, start: Callable[[], WorkerProcess], end_s: float) -> None:
        super().__init__()
        self.restarts = 0
        self.end_s = end_s
        self._start = start
        self._start_at = 0.0
        self._began = 0.0
        self._in_a_row = 0
        self._lack = ""
        self._over = False

    def due(self) -> float:
        """Seconds until `tend` should be called; infinity if there is nothing to wait for."""
        if self._over:
            return float("inf")
        if self.worker is None:
            return max(0.0, self._start_at - time.monotonic())
        overdue = self.worker.overdue
        return float("inf") if overdue is None else overdue

    def tend(self) -> None:
        """Start one if there is none, and replace one that does not get ready."""
        if self._over:
            return
        if self.worker is not None and self.worker.overdue == 0.0:
            self.heard()  # its answer may be there, unread
        if self.worker is not None and self.worker.overdue == 0.0:
            self._died(self.worker.too_slow())
        if self.worker is None and time.monotonic() >= self._start_at:
            self._begin()

    def heard(self) -> None:
        """Its control channel is readable."""
        if self.worker is not None:
            try:
                self.worker.read()
            except (WorkerLost, WorkerSetupError) as error:
                self._died(str(error))

    def ended(self) -> None:
        """It ended by itself; it may have said why."""
        self.heard()
        self._died("died")

    def stop(self) -> None:
        """No other is started any more; the one that there is goes on until `finish`."""
        self._over = True

    def finish(self) -> None:
        """Have it come to an end, and wait for that for its time."""
        self._over = True
        worker, self.worker = self.worker, None
        if worker is None:
            return
        try:
            # One that is not ready yet has nothing to finish.
            worker.settle()
        except (WorkerLost, WorkerSetupError):
            pass
        began = time.monotonic()
        if not worker.exit(self.end_s) or time.monotonic() - began >= self.end_s:
            log.warning(
                "helper: worker %d was not done in %g s, and killed", worker.pid, self.end_s
            )

    def _begin(self) -> None:
        try:
            worker = self._start()
        except CannotStart as error:
            if error.reason != self._lack:
                log.error("no helper: %s; trying again", error)
            self._lack = error.reason
            self._start_at = time.monotonic() + RETRY_S[-1]
            return
        self._lack = ""
        self._began = time.monotonic()
        self.worker = worker
        try:
            worker.help()
        except WorkerLost as error:
            self._died(str(error))

    def _died(self, cause: str) -> None:
        worker, self.worker = self.worker, None
        if worker is None:
            return
        by_itself = worker.wait_end(END_GRACE)
        worker.kill()
        how = worker.ending() if by_itself else "killed"
        log.warning("helper: worker %d ended (%s; %s)", worker.pid, cause, how)
        worker.close()
        self.restarts += 1
        now = time.monotonic()
        self._in_a_row = 0 if now - self._began > WELL_S else self._in_a_row + 1
        self._start_at = now + RETRY_S[min(max(self._in_a_row - 1, 0), len(RETRY_S) - 1)]
