"""One place for a worker process: who sits there, how its predecessors ended, and when it may be
filled again.

A worker that dies having done no work since it took its seat counts towards the *breaker*: after
`BREAKER_DEATHS` of them within `BREAKER_WINDOW_S` there is no point in going on. A SIGKILL that was
not ours does not count, for it comes from outside: poison requests are found by their record.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable

from vuproc.workers.supervise import WorkerProcess, name_queues

log = logging.getLogger("vuproc.master")

BACK_OFF = (0.0, 0.010, 0.050, 0.250, 1.0)
"""Seconds before the first, second, ... replacement in a crash loop."""
BREAKER_DEATHS = 5
BREAKER_WINDOW_S = 30.0
END_GRACE = 0.25
"""Seconds in which a worker that is lost may end by itself, before it is killed. One that is dying
is waited for no longer than it takes, which on a busy machine may be a while.
"""
LEAVE_S = 1.0
"""Seconds a worker that is well has to leave."""
LAST_CAUSES = 8
"""Causes of death that are remembered for the status."""


class Seat:
    """Serves `queues`; `spawn` gives a worker for them, `work` counts the requests they served."""

    def __init__(
        self,
        queues: tuple[int, ...],
        spawn: Callable[[tuple[int, ...]], WorkerProcess],
        work: Callable[[tuple[int, ...]], int],
    ) -> None:
        self.queues = queues
        self.worker: WorkerProcess | None = None
        self.spawn_at = 0.0
        self.since = 0.0
        self.restarts = 0
        self.last = False
        """The worker that sits here will have no successor."""
        self.last_signal: signal.Signals | None = None
        self.causes: deque[str] = deque(maxlen=LAST_CAUSES)
        self._spawn = spawn
        self._work = work
        self._work_before = 0
        self._deaths: deque[float] = deque(maxlen=BREAKER_DEATHS)
        self._untold: WorkerProcess | None = None

    @property
    def crash_looping(self) -> bool:
        """The last `BREAKER_DEATHS` deaths came shortly one after the other, without work."""
        if len(self._deaths) < BREAKER_DEATHS:
            return False
        return self._deaths[-1] - self._deaths[0] <= BREAKER_WINDOW_S

    def spawn(self) -> None:
        """Fill the empty seat. Raises `WorkerSetupError`."""
        self.occupy(self._spawn(self.queues))

    def occupy(self, worker: WorkerProcess) -> None:
        """Have a worker of these queues sit here; the seat is empty."""
        assert self.worker is None
        self.worker = worker
        self.since = time.monotonic()
        self._work_before = self._work(self.queues)

    def bury(self, cause: str) -> bool:
        """Make sure that the worker is dead, log how it ended, and empty the seat.

        False if it was empty. A worker that the kernel does not let die keeps the seat empty for
        good: no second one may touch its rings. How one ended that had done its work changes
        nothing for its successor, for which a driver waits: `tell` finds out and says it later.
        """
        self.tell()
        worker = self.worker
        if worker is None:
            return False
        self.worker = None
        # Its channel may close a moment before its end can be seen; what ended it is worth knowing.
        by_itself = worker.wait_end(END_GRACE)
        if by_itself and self._has_worked():
            self._untold = worker
            self._count(from_outside=False)
            return True
        if not worker.kill():
            log.error("worker %d cannot be killed; its queues stay without one", worker.pid)
            self.spawn_at = float("inf")
            return True
        self._tell(worker, worker.ending() if by_itself else cause)
        self._count(from_outside=by_itself and self.last_signal is signal.SIGKILL)
        return True

    @property
    def untold(self) -> bool:
        """How the last worker ended is not known yet."""
        return self._untold is not None

    def tell(self) -> None:
        """Log how the last worker ended, if that was put off."""
        worker, self._untold = self._untold, None
        if worker is not None:
            self._tell(worker, worker.ending())

    def _tell(self, worker: WorkerProcess, how: str) -> None:
        self.last_signal = worker.ended_by_signal()
        worker.close()
        self.restarts += 1
        self.causes.append(f"worker {worker.pid}: {how}")
        then = "" if self.last else ", starting another"
        log.warning("%s: worker %d ended (%s)%s", name_queues(self.queues), worker.pid, how, then)

    def vacate(self) -> None:
        """Have a worker that is well end by itself, and empty the seat; as `bury`, for good if it
        does not.
        """
        worker, self.worker = self.worker, None
        if worker is not None and not worker.exit(LEAVE_S):
            log.error("worker %d cannot be killed; its queues stay without one", worker.pid)
            self.spawn_at = float("inf")

    def postpone(self) -> None:
        """The seat could not be filled: count that as a death."""
        self._count(from_outside=False)

    @property
    def barred(self) -> bool:
        """The last worker could not be killed: nobody may follow."""
        return self.spawn_at == float("inf")

    def forgive(self) -> None:
        """Close the breaker and forget what opened it."""
        self._deaths.clear()
        if not self.barred:
            self.spawn_at = min(self.spawn_at, time.monotonic())

    def _count(self, *, from_outside: bool) -> None:
        now = time.monotonic()
        if self._has_worked() or from_outside:
            self._deaths.clear()
            self.spawn_at = now
            return
        while self._deaths and now - self._deaths[0] > BREAKER_WINDOW_S:
            self._deaths.popleft()
        self.spawn_at = now + BACK_OFF[min(len(self._deaths), len(BACK_OFF) - 1)]
        self._deaths.append(now)

    def _has_worked(self) -> bool:
        return self._work(self.queues) != self._work_before
