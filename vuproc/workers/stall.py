"""Finds workers that are at work and do not get on with it.

A worker keeps three words in its counters' block: which request it is serving (0: none), a
heartbeat that advances with every request, and whether it is inside one of the device's hooks. The
master looks at them now and then; nobody is woken.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vuproc.shm.counters import CountersSnapshot
from vuproc.workers.crew import Crew

LOOKS = 4
"""Looks within one timeout: a stall is seen at most a quarter of it too late."""


class StallWatch:
    """Looks after the workers of `crew`. `timeout_s` 0: never; `hook_timeout_s` is for hooks.

    `snapshot(queue)` reads a queue's counters.
    """

    def __init__(
        self,
        timeout_s: float,
        hook_timeout_s: float,
        crew: Crew,
        snapshot: Callable[[int], CountersSnapshot],
    ) -> None:
        self.timeout_s = timeout_s
        self.hook_timeout_s = hook_timeout_s
        self._crew = crew
        self._snapshot = snapshot
        self._seen: dict[int, tuple[tuple[int, ...], float]] = {}
        self._look_at = time.monotonic()

    def due(self) -> float | None:
        """Seconds until the next look, or None if there is none."""
        return max(0.0, self._look_at - time.monotonic()) if self.timeout_s else None

    def tend(self) -> None:
        """Look, if it is time, and have workers that are stuck replaced."""
        now = time.monotonic()
        if not self.timeout_s or now < self._look_at:
            return
        self._look_at = now + self.timeout_s / LOOKS
        for seat in self._crew.seats:
            if seat.worker is None:
                continue
            for queue in seat.queues:
                what = self._stuck(queue, seat.worker.pid, now)
                if what is not None:
                    self._crew.died(seat, f"queue {queue}: no progress for {what}")
                    break

    def close(self) -> None:
        """Nothing to give back."""

    def _stuck(self, queue: int, pid: int, now: float) -> str | None:
        """What holds the queue up, in words, or None if it gets on."""
        counters = self._snapshot(queue)
        in_hook = counters.hooks % 2 != 0
        state = (pid, counters.busy, counters.heartbeat, counters.hooks)
        before, since = self._seen.get(queue, (None, now))
        if not (counters.busy or in_hook) or state != before:
            self._seen[queue] = (state, now)
            return None
        limit = self.timeout_s if counters.busy else max(self.timeout_s, self.hook_timeout_s)
        if now - since < limit:
            return None
        what = f"head {counters.busy - 1}" if counters.busy else "a hook of the device"
        return f"{limit:g} s with {what}"
