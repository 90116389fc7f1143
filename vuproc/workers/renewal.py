"""Replaces workers that are well by others of a new kind, one at a time, without losing a request.

Each finishes what is in flight before its successor, which has imported everything by then, goes on
with its rings. If the first of the new kind does not start, nothing has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from vuproc.workers.crew import Crew
from vuproc.workers.seat import Seat

log = logging.getLogger("vuproc.master")


class Renewal:
    """Looks after one renewal at a time. A chore of the master's loop."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._left: list[Seat] = []
        self._before: int | None = None
        self._on_done: Callable[[], None] = lambda: None
        self._on_failed: Callable[[], None] = lambda: None

    @property
    def under_way(self) -> bool:
        """Whether there are workers of the old kind."""
        return bool(self._left)

    def begin(self, on_done: Callable[[], None], on_failed: Callable[[], None]) -> None:
        """Begin, once the crew's standbys are started as workers of the new kind."""
        assert not self._left
        self._left = list(self._crew.seats)
        self._on_done, self._on_failed = on_done, on_failed
        self._crew.standby.stop()
        self._crew.standby.refill()
        # Until the first of the new kind is there.
        self._before = self._crew.standby.restarts

    def due(self) -> float | None:
        """Nothing is due that no descriptor announces, once a standby is ready."""
        standby = self._crew.standby.worker
        return 0.0 if self._left and standby is not None and standby.is_prepared else None

    def tend(self) -> None:
        """Replace the next one, if there is a standby for it."""
        if not self._left:
            return
        standby = self._crew.standby
        if self._before is not None and standby.restarts != self._before:
            self._left.clear()
            self._on_failed()
            return
        if standby.worker is None or not standby.worker.is_prepared:
            return
        self._before = None
        self._crew.renew(self._left.pop(0))
        standby.refill()
        if not self._left:
            self._on_done()

    def close(self) -> None:
        """The loop is over."""
        self._left.clear()
