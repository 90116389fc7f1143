"""One place for a worker process: who sits there, how its predecessors ended, and when it may be
filled again.

A worker that dies having done no work since it took its slot counts towards the *breaker*: after
`BREAKER_DEATHS` of them within `BREAKER_WINDOW_S` there is no point in going on. A SIGKILL that was
not ours does not count, for it comes from outside: poison requests are found by their record. Nor
does it count if the system has no process to give: that is tried again for as long as it takes.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable

from vuproc import events, texts
from vuproc.events import WorkerDied, WorkerReplaced
from vuproc.pool.post import Post
from vuproc.pool.process import END_GRACE, WorkerProcess, WorkerSetupError, name_queues
from vuproc.workers.control import CAUSE_BYTES

log = logging.getLogger("vuproc.master")

BACK_OFF = (0.0, 0.010, 0.050, 0.250, 1.0)
"""Seconds before the first, second, ... replacement in a crash loop."""
LACK_FIRST_S, LACK_MOST_S = 0.05, 1.0
"""Seconds before another try when no worker can be had; it doubles each time."""
BREAKER_DEATHS = 5
BREAKER_WINDOW_S = 30.0
LEAVE_S = 1.0
"""Seconds a worker that is well has to leave."""
LAST_CAUSES = 8
"""Causes of death that are remembered for the status."""


class WorkerSlot(Post):
    """Serves `queues`; `spawn` gives a worker for them, `work` counts the requests they served."""

    def __init__(
        self,
        queues: tuple[int, ...],
        spawn: Callable[[tuple[int, ...], bool], WorkerProcess],
        work: Callable[[tuple[int, ...]], int],
    ) -> None:
        super().__init__()
        self.queues = queues
        self.lack = ""
        """Why no worker can be had at the moment; "" if one can."""
        self.spawn_at = 0.0
        self.since = 0.0
        self.restarts = 0
        self.last = False
        """The worker that sits here will have no successor."""
        self.last_signal: signal.Signals | None = None
        self.causes: deque[str] = deque(maxlen=LAST_CAUSES)
        self.overlaps: Callable[[], bool] = lambda: False
        """Whether a worker of this slot may follow another as soon as that one runs no more, though
        the kernel is still closing what it had open."""
        self.recovers = False
        """A worker of this slot follows another: it may find what that one has left."""
        self.look: Callable[[tuple[int, ...]], tuple[tuple[int, int], ...]] = lambda _queues: ()
        """Tells which requests of these queues are in the device's code, as of `WorkerDied`."""
        self.missed_end = False
        """A session has ended while there was no worker to hear it: the next one is told first, for
        what the last one has left is of that session."""
        self._spawn = spawn
        self._work = work
        self._work_before = 0
        self._lost_at: float | None = None
        self._serving: tuple[tuple[int, int], ...] = ()
        self._deaths: deque[float] = deque(maxlen=BREAKER_DEATHS)
        self._exit_unlogged: WorkerProcess | None = None
        self._replaced: WorkerReplaced | None = None
        self._lack_pause = LACK_FIRST_S

    @property
    def crash_looping(self) -> bool:
        """The last `BREAKER_DEATHS` deaths came shortly one after the other, without work."""
        if len(self._deaths) < BREAKER_DEATHS:
            return False
        return self._deaths[-1] - self._deaths[0] <= BREAKER_WINDOW_S

    def spawn(self) -> WorkerProcess:
        """Fill the empty slot. Raises `CannotStart` or `WorkerLost`."""
        worker = self._spawn(self.queues, self.recovers)
        self.assign(worker)
        return worker

    def lacking(self, why: str) -> None:
        """No worker can be had: try again in a while, for as long as it takes."""
        if why != self.lack:
            log.error("%s: %s; trying again", name_queues(self.queues), why)
        self.lack = why
        self.spawn_at = time.monotonic() + self._lack_pause
        self._lack_pause = min(2 * self._lack_pause, LACK_MOST_S)

    def supplied(self) -> None:
        """Its worker is ready."""
        if self.lack:
            log.info("%s: served again", name_queues(self.queues))
        self.lack, self._lack_pause = "", LACK_FIRST_S
        lost_at, self._lost_at = self._lost_at, None
        if lost_at is not None and self.worker is not None:
            stall_s = round(time.monotonic() - lost_at, 9)
            pid = self.worker.pid
            self._replaced = WorkerReplaced(queues=self.queues, pid=pid, stall_s=stall_s)
            self._publish_replaced()

    def _publish_replaced(self) -> None:
        """Not before it was published that the last one has ended."""
        if self._replaced is not None and self._exit_unlogged is None:
            replaced, self._replaced = self._replaced, None
            events.publish(replaced)

    def assign(self, worker: WorkerProcess) -> None:
        """Have a worker of these queues sit here; the slot is empty."""
        assert self.worker is None
        self.worker = worker
        self.recovers = True
        self.since = time.monotonic()
        self._work_before = self._work(self.queues)

    def reap(self, cause: str) -> bool:
        """Make sure that the worker is dead, log how it ended, and empty the slot.

        False if it was empty. A worker that the kernel does not let die keeps the slot empty for
        good: no second one may touch its rings. How one ended that had done its work changes
        nothing for its successor, for which a driver waits: `log_exit` finds out and says it later.
        """
        self.log_exit(wait=True)
        worker = self.worker
        if worker is None:
            return False
        self.worker = None
        self._serving = self.look(self.queues)
        if self._lost_at is None:
            self._lost_at = time.monotonic()
        # Its channel may close a moment before its end can be seen; what ended it is worth knowing.
        by_itself = self._may_follow(worker) or worker.wait_end(END_GRACE)
        if by_itself and self._has_worked():
            self._exit_unlogged = worker
            self._count(from_outside=False)
            return True
        stack = "" if by_itself else worker.stack()
        if not worker.kill():
            log.error("worker %d cannot be killed; its queues stay without one", worker.pid)
            self.spawn_at = float("inf")
            return True
        from_outside = by_itself and worker.ended_from_outside()
        self._log_exit_of(worker, worker.ending() if by_itself else cause)
        if stack:
            log.warning("%s: worker %d was at\n%s", name_queues(self.queues), worker.pid, stack)
        self._count(from_outside=from_outside)
        return True

    def _may_follow(self, worker: WorkerProcess) -> bool:
        """Whether another need not wait for this one's end."""
        return self.overlaps() and worker.stopped

    @property
    def has_stopped(self) -> bool:
        """Its worker, which has done its work, runs no more, and another may follow it already."""
        return self.worker is not None and self._may_follow(self.worker) and self._has_worked()

    @property
    def exit_unlogged(self) -> WorkerProcess | None:
        """The last worker, if it is not known yet how it ended."""
        return self._exit_unlogged

    def log_exit(self, *, wait: bool = False) -> None:
        """Log how the last worker ended, if that was put off; once it has, unless we `wait`."""
        worker = self._exit_unlogged
        if worker is None or not (wait or worker.wait_end(0.0)):
            return
        self._exit_unlogged = None
        self._log_exit_of(worker, worker.ending())
        self._publish_replaced()

    def _log_exit_of(self, worker: WorkerProcess, how: str) -> None:
        self.last_signal = worker.ended_by_signal()
        worker.close()
        self.restarts += 1
        self._note_cause(worker, how)
        then = "" if self.last else ", starting another"
        how = events.shown(how)
        serving, self._serving = self._serving, ()
        events.publish(
            WorkerDied(queues=self.queues, pid=worker.pid, how=how, then=then, serving=serving)
        )

    def release(self) -> None:
        """Have a worker that is well end by itself, and empty the slot; as `reap`, for good if it
        does not.
        """
        worker, self.worker = self.worker, None
        if worker is not None and not worker.exit(LEAVE_S):
            log.error("worker %d cannot be killed; its queues stay without one", worker.pid)
            self.spawn_at = float("inf")

    def refuse(self, error: WorkerSetupError) -> None:
        """Its worker could not set up its queues, and ends: that counts as a death."""
        worker, self.worker = self.worker, None
        assert worker is not None
        log.error("%s: %s", name_queues(self.queues), error)
        worker.kill()
        worker.close()
        self.restarts += 1
        self._note_cause(worker, str(error))
        self._count(from_outside=False)

    def _note_cause(self, worker: WorkerProcess, how: str) -> None:
        self.causes.append(texts.line(f"worker {worker.pid}: {how}", CAUSE_BYTES))

    @property
    def unkillable(self) -> bool:
        """The last worker could not be killed: nobody may follow."""
        return self.spawn_at == float("inf")

    def close_breaker(self) -> None:
        """Close the breaker and forget what opened it."""
        self._deaths.clear()
        if not self.unkillable:
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
