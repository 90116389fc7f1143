"""One place for a worker process: who sits there, how often it had to be filled again, and when it
may be next.
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
"""Seconds before the first, second, ... replacement within `BACK_OFF_WINDOW`."""
END_GRACE = 0.05
"""Seconds in which a worker that is lost may end by itself, before it is killed."""
BACK_OFF_WINDOW = 30.0
"""Seconds after which a death no longer counts."""


class Seat:
    """Serves `queues`; `spawn` starts a worker for them."""

    def __init__(
        self, queues: tuple[int, ...], spawn: Callable[[tuple[int, ...]], WorkerProcess]
    ) -> None:
        self.queues = queues
        self.worker: WorkerProcess | None = None
        self.spawn_at = 0.0
        self.last_signal: signal.Signals | None = None
        self.restarts = 0
        self._spawn = spawn
        self._deaths: deque[float] = deque(maxlen=len(BACK_OFF))

    def spawn(self) -> None:
        """Fill the empty seat. Raises `WorkerSetupError`."""
        assert self.worker is None
        self.worker = self._spawn(self.queues)

    def bury(self, cause: str) -> bool:
        """Make sure that the worker is dead, log how it ended, and empty the seat. False if it was
        empty.
        """
        worker = self.worker
        if worker is None:
            return False
        self.worker = None
        # Its channel may close a moment before its end can be seen; what ended it is worth knowing.
        already_dead = worker.wait_end(END_GRACE)
        if not worker.kill():
            log.error("worker %d cannot be killed; its queues stay without one", worker.pid)
            self.spawn_at = float("inf")
            return True
        how = worker.ending()
        self.last_signal = worker.ended_by_signal()
        worker.close()
        if not already_dead:
            how = cause
        log.warning(
            "%s: worker %d ended (%s), starting another", name_queues(self.queues), worker.pid, how
        )
        self.restarts += 1
        self.postpone()
        return True

    def postpone(self) -> None:
        """Count a death (or a failed start) and set when the seat may be filled again."""
        now = time.monotonic()
        while self._deaths and now - self._deaths[0] > BACK_OFF_WINDOW:
            self._deaths.popleft()
        self.spawn_at = now + BACK_OFF[min(len(self._deaths), len(BACK_OFF) - 1)]
        self._deaths.append(now)
