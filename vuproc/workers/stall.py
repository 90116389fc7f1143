"""Finds workers that are at work and do not get on with it.

A worker keeps two words in its counters' block: which request it is serving (0: none), and a
heartbeat that advances with every request. The master looks at them now and then; nobody is woken.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vuproc.shm.counters import CountersSnapshot

LOOKS = 4
"""Looks within one timeout: a stall is seen at most a quarter of it too late."""


class StallWatch:
    """Watches the queues of one device. `timeout_s` 0: never.

    `snapshot(queue)` reads a queue's counters.
    """

    def __init__(self, timeout_s: float, snapshot: Callable[[int], CountersSnapshot]) -> None:
        self._timeout_s = timeout_s
        self._snapshot = snapshot
        self._seen: dict[int, tuple[int, int, float]] = {}
        self._look_at = time.monotonic()

    def due(self) -> float | None:
        """Seconds until the next look, or None if there is none."""
        return max(0.0, self._look_at - time.monotonic()) if self._timeout_s else None

    def look(self, queues: list[int]) -> dict[int, int]:
        """The queues that are stuck, each with the head of the request that holds it.

        `queues` are those with a worker. To be called when `due` says 0.
        """
        now = time.monotonic()
        self._look_at = now + self._timeout_s / LOOKS
        stuck: dict[int, int] = {}
        for queue in queues:
            counters = self._snapshot(queue)
            busy, beat = counters.busy, counters.heartbeat
            before = self._seen.get(queue)
            if busy == 0 or before is None or before[:2] != (busy, beat):
                self._seen[queue] = (busy, beat, now)
            elif now - before[2] >= self._timeout_s:
                stuck[queue] = busy - 1
                del self._seen[queue]
        return stuck

    def forget(self, queue: int) -> None:
        """The queue has a new worker."""
        self._seen.pop(queue, None)
