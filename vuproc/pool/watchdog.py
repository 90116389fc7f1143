"""Finds workers that are at work and do not get on with it.

A worker keeps three words in its counters' block: which request it is serving (0: none), a
heartbeat that advances with every request, and whether it is inside one of the device's hooks. What
it has given to io_uring it counts by the *epoch* in which that was, a word that the master advances
with each look. The master looks at them now and then; nobody is woken, and nobody looks at a clock
for a request.

A process that is stopped by a signal says nothing in these words if it had no request: the kernel
says that.

What a device keeps on purpose, such as buffers for packets to come, is none of these.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence

from vuproc.fd import Fd
from vuproc.pool.pool import WorkerPool
from vuproc.pool.process import WorkerLost, WorkerProcess, WorkerRefused
from vuproc.shm.counters import QueueCounters
from vuproc.workers import control

log = logging.getLogger("vuproc.master")

LOOKS = 4
"""Looks within one timeout while somebody is at work. Fewer than the epochs that are told apart."""
IDLE_LOOKS = 2
"""The same while nobody is: a stall is seen at most half a timeout too late, a quarter if there was
work before. A master that looks has to be woken for it.
"""
OVERSLEPT_S = 2.0
"""Seconds that a look may be late, or one interval, before that is taken for a machine that stood
still.
"""
STAT_BYTES = 512
"""Of /proc/PID/stat: the state comes after the name, which has 64 at most."""
BLAME_DEADLINE_S = 0.5
"""Seconds a worker has to note what it is killed for."""


class Watchdog:
    """Looks after the workers of `pool`. `timeout_s` 0: never; `hook_timeout_s` is for hooks.

    `counters[i]` are those of queue i.
    """

    def __init__(
        self,
        timeout_s: float,
        hook_timeout_s: float,
        pool: WorkerPool,
        counters: Sequence[QueueCounters],
    ) -> None:
        self.timeout_s = timeout_s
        self.hook_timeout_s = hook_timeout_s
        self._pool = pool
        self._counters = counters
        self._seen: dict[int, tuple[tuple[int, tuple[int, int, int]], float]] = {}
        self._stopped: dict[int, float] = {}
        """By process: since when it has been found to be stopped by a signal."""
        self._interval = 0.0
        self._look_at = time.monotonic()

    def due(self) -> float | None:
        """Seconds until the next look, or None if there is none."""
        return max(0.0, self._look_at - time.monotonic()) if self.timeout_s else None

    def tend(self) -> None:
        """Look, if it is time, and have workers that are stuck replaced."""
        now = time.monotonic()
        if not self.timeout_s or now < self._look_at:
            return
        late, interval = now - self._look_at, self._interval
        if late > max(interval, OVERSLEPT_S):
            # The machine has stood still, or we have, or the clock has jumped: the workers have had
            # no time to get on since the last look.
            self._forgive(late + interval)
        self._look_again(now, LOOKS)
        if self._pool.history.in_postcopy:
            self._seen.clear()  # whoever waits for a page is not stuck
            return
        workers = [slot.worker for slot in self._pool.slots if slot.worker is not None]
        self._stopped = {
            worker.pid: self._stopped.get(worker.pid, now)
            for worker in workers
            if _is_stopped(worker.pid)
        }
        if not self._stopped and not any(map(self._is_at_work, self._counters)):
            self._look_again(now, IDLE_LOOKS)
        for slot in self._pool.slots:
            worker = slot.worker
            if worker is None:
                continue
            # Every queue is looked at, for each look moves its epoch on.
            causes = [
                self._overdue(queue, worker) or self._stuck(queue, worker.pid, now)
                for queue in slot.queues
            ]
            cause = next(filter(None, causes), None) or self._still(worker.pid, now)
            if cause is not None:
                self._pool.slots.died(slot, cause)

    def look_at_idle(self) -> bool:
        """The look that is due, if nobody is at work and nobody is stopped; whether that was all.

        Most often it is all that there is to do, and little of the program that is in no cache.
        """
        now = time.monotonic()
        if not self.timeout_s or not 0.0 <= now - self._look_at <= OVERSLEPT_S:
            return False
        if self._stopped or self._pool.history.in_postcopy:
            return False
        workers = [slot.worker for slot in self._pool.slots if slot.worker is not None]
        if any(map(self._is_at_work, self._counters)) or any(
            _is_stopped(worker.pid) for worker in workers
        ):
            return False
        self._seen.clear()
        for counters in self._counters:
            counters.advance()
        self._look_again(now, IDLE_LOOKS)
        return True

    def close(self) -> None:
        """Nothing to give back."""

    def _look_again(self, now: float, looks: int) -> None:
        self._interval = self.timeout_s / looks
        self._look_at = now + self._interval

    def _is_at_work(self, counters: QueueCounters) -> bool:
        busy, _, hooks = counters.work()
        return bool(busy) or hooks % 2 != 0 or counters.handed_since(1) != 0

    def _overdue(self, queue: int, worker: WorkerProcess) -> str | None:
        """What io_uring does not finish, for which the worker is to blame those requests; or None.

        A request that costs three workers is failed without being run again, as any other.
        """
        counters = self._counters[queue]
        counters.advance()
        waiting = counters.handed_since(LOOKS + 1)
        if not waiting or not worker.ready:
            return None
        try:
            worker.call(control.BlameUring(queue=queue, looks=LOOKS + 1), timeout=BLAME_DEADLINE_S)
        except (WorkerLost, WorkerRefused) as error:
            log.warning("%s", error)
        plural = "s" * (waiting > 1)
        return (
            f"queue {queue}: io_uring has not finished {waiting} request{plural} "
            f"for {self.timeout_s:g} s"
        )

    def _forgive(self, seconds: float) -> None:
        """So much time does not count."""
        self._seen = {queue: (what, since + seconds) for queue, (what, since) in self._seen.items()}
        self._stopped = {pid: since + seconds for pid, since in self._stopped.items()}

    def _still(self, pid: int, now: float) -> str | None:
        """Why a worker that is not at a request will not get to one, or None if it will.

        Nothing else tells: only it would see that the driver has kicked.
        """
        if now - self._stopped.get(pid, now) < self.timeout_s:
            return None
        return f"worker {pid} has been stopped by a signal for {self.timeout_s:g} s"

    def _stuck(self, queue: int, pid: int, now: float) -> str | None:
        """Why the queue's worker does not get on with a request or a hook, or None if it does."""
        busy, _, hooks = work = self._counters[queue].work()
        in_hook = hooks % 2 != 0
        state = pid, work
        before, since = self._seen.get(queue, (None, now))
        if not (busy or in_hook) or state != before:
            self._seen[queue] = (state, now)
            return None
        limit = self.timeout_s if busy else max(self.timeout_s, self.hook_timeout_s)
        if now - since < limit:
            return None
        what = f"head {busy - 1}" if busy else "a hook of the device"
        return f"queue {queue}: no progress for {limit:g} s with {what}"


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped by SIGSTOP or the like; by a debugger is another matter."""
    try:
        with Fd(os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)) as file:
            return os.read(file.fileno(), STAT_BYTES).rpartition(b") ")[2].startswith(b"T")
    except OSError:
        return False  # it has ended, or there is no /proc
