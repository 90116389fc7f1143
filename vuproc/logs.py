"""The log: one line an event on standard error, and no more of one kind than are worth reading."""

from __future__ import annotations

import logging

from vuproc import texts
from vuproc.log_formats import Line, LogFormat, line_of, make_format
from vuproc.log_limit import LogLimit, place_of

PLACES_MOST = 1024
"""Places whose lines are counted at a time: every worker is one, every line of code another."""


class Log(logging.Handler):
    """Writes what vuproc logs as `shown` says, and never waits for that.

    A chore of the master's loop: what was not shown is counted, and the counts come by themselves.
    """

    def __init__(self, shown: LogFormat) -> None:
        super().__init__()
        self._format = shown
        self._limit = LogLimit(PLACES_MOST)

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record, or count it."""
        place = place_of(record)
        if self._limit.admits(place.key, lambda: texts.logged(record), burst=place.burst):
            self._format.show(line_of(record))

    def due(self) -> float | None:
        """Seconds until there may be something to say."""
        waits = [each for each in (self._limit.due(), self._format.due()) if each is not None]
        return min(waits, default=None)

    def tend(self) -> None:
        """Say what is due."""
        self._tell(self._limit.counts())
        self._format.say_lost()

    def close(self) -> None:
        """Say what was counted so far. More may follow."""
        self._tell(self._limit.counts(all_of_them=True))
        self._format.say_lost()
        super().close()

    def _tell(self, counts: list[str]) -> None:
        for text in counts:
            self._format.show(Line("WARNING", text))


def set_up(level: int, name: str, kind: str = "text") -> Log:
    """Send the log of all of vuproc where `log_format: kind` says, each event with `name`.

    Once a process.
    """
    log = Log(make_format(kind, name))
    logger = logging.getLogger("vuproc")
    logger.handlers[:] = [log]
    logger.setLevel(level)
    logger.propagate = False
    return log
