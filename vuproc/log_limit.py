"""How often a log takes lines from one place, and how many it did not take.

A guest, a front-end or a device's code decides how often a line is logged. So each place has a
bound of its own: what one says a thousand times hides nothing of what another says once. What was
not shown is counted, and the count is shown when its time has come, whether more follows or not.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from msgspec import Struct

from vuproc import texts

PERIOD_S = 5.0
"""Seconds for which a place's lines are counted."""
BURST = 20
"""Lines of one place that are shown within a period."""
EXAMPLE_BYTES = 240
"""Bytes of the line that stands for those that were not shown."""
OTHERS = "others"
"""The place of all those for which there is no room any more."""


class _Place(Struct):
    since: float
    once: bool
    shown: int = 0
    missed: int = 0
    example: str = ""


class LogLimit:
    """Decides over each line of one log.

    `places` are known at a time, with no more than `lines` a period from all of them together.
    """

    def __init__(
        self, places: int, lines: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_places = places
        self._most_lines = lines
        self._clock = clock
        self._places: dict[Hashable, _Place] = {}
        self._lines = 0
        self._lines_since = clock()
        self.pending = False
        """Something was counted that was not shown."""

    def admits(
        self, key: Hashable, text: Callable[[], str], *, burst: float = BURST, once: bool = False
    ) -> bool:
        """Whether this line is shown. Otherwise it is counted, and the first of `text` that is not
        shown in a period stands for all of them.

        `once`: of a place that goes on and on, nothing but counts follows its first `burst` lines.
        """
        place = self._place(key, once)
        if place.shown < burst and self._room():
            place.shown += 1
            self._lines += 1
            return True
        self._miss(place, text)
        return False

    def lost(self, key: Hashable, text: Callable[[], str]) -> None:
        """A line that was admitted could not be shown after all."""
        self._miss(self._place(key, once=False), text)

    def due(self) -> float | None:
        """Seconds until a count is to be shown, or None if there is none."""
        if not self.pending:
            return None
        first = min(place.since for place in self._places.values() if place.missed)
        return max(0.0, first + PERIOD_S - self._clock())

    def counts(self, *, all_of_them: bool = False) -> list[str]:
        """A line for each count whose time has come; they begin anew."""
        if not self.pending:
            return []
        now = self._clock()
        lines = []
        for key, place in self._places.items():
            if place.missed and (all_of_them or now - place.since >= PERIOD_S):
                kind = " of other kinds" if key == OTHERS else " like this"
                over = f"{max(1.0, now - place.since):.0f} s"
                lines.append(f"{place.missed} more{kind} in {over}: {place.example}")
                place.since, place.missed = now, 0
                place.shown = place.shown if place.once else 0
        self.pending = any(place.missed for place in self._places.values())
        return lines

    def _place(self, key: Hashable, once: bool) -> _Place:
        now = self._clock()
        place = self._places.get(key)
        if place is None and len(self._places) >= self._most_places:
            self._forget(now)
            if len(self._places) >= self._most_places:
                key, place = OTHERS, self._places.get(OTHERS)
        if place is None or not (place.missed or now - place.since < PERIOD_S):
            shown = sys.maxsize if key == OTHERS else 0
            place = self._places[key] = _Place(now, once or key == OTHERS, shown)
        return place

    def _forget(self, now: float) -> None:
        """Places that have fallen silent."""
        self._places = {
            key: place
            for key, place in self._places.items()
            if place.missed or now - place.since < PERIOD_S
        }

    def _room(self) -> bool:
        now = self._clock()
        if now - self._lines_since >= PERIOD_S:
            self._lines, self._lines_since = 0, now
        return self._lines < self._most_lines

    def _miss(self, place: _Place, text: Callable[[], str]) -> None:
        if not place.missed:
            place.example = texts.line(text().partition("\n")[0], EXAMPLE_BYTES)
        place.missed += 1
        self.pending = True


class Place(NamedTuple):
    """Where a log record comes from, and how many from there are shown within a period."""

    key: Hashable
    burst: float


def apart(key: Hashable, burst: int) -> dict[str, object]:
    """The `extra` of a log record whose place is not the line of code that logs it."""
    return {"vuproc_place": Place(key, burst)}


def place_of(record: logging.LogRecord) -> Place:
    """The place of a log record. Lines for debugging have no bound, for they were asked for."""
    given: Place | None = getattr(record, "vuproc_place", None)
    if given is not None:
        return given
    burst = math.inf if record.levelno <= logging.DEBUG else BURST
    return Place((record.pathname, record.lineno), burst)
