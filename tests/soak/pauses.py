"""Whether the machine stood still: a thread that comes late has not run, and nobody else has."""

from __future__ import annotations

import time
from threading import Event, Lock, Thread
from types import TracebackType

TICK_S = 0.05
LATE_S = 0.25
"""Later than a thread comes that only waits for a CPU."""


class Pauses:
    """Adds up the seconds in which this process was not let run. A context manager."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._last = time.monotonic()
        self._paused_s = 0.0
        self._over = Event()
        self._thread = Thread(target=self._watch, name="pauses")

    def __enter__(self) -> Pauses:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def take(self) -> float:
        """Seconds since the last call; 0.0 if it ran all the time."""
        self._look()  # the thread may not have had its turn yet
        with self._lock:
            found, self._paused_s = self._paused_s, 0.0
        return found

    def _watch(self) -> None:
        while not self._over.wait(TICK_S):
            self._look()

    def _look(self) -> None:
        with self._lock:
            now = time.monotonic()
            late = now - self._last - TICK_S
            self._last = now
            if late > LATE_S:
                self._paused_s += late
