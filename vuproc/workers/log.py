"""What a worker has to say for the master's log: lines of its device, and failures of its code.

Saying it never waits. A master that is busy, or a device that talks too much, costs lines, which
are counted; most of the channel's room is kept for the answers that the master waits for.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable, Hashable

from vuproc import texts
from vuproc.log_limit import LogLimit, place_of
from vuproc.sandbox.policy import HINT
from vuproc.workers.channel import ChannelError
from vuproc.workers.control import Logged, WorkerChannel

PLACES_MOST = 64
"""Lines of code, and kinds of failures, that are told apart at a time."""
LINES_MOST = 100
"""Lines of the device that are sent within a period."""
MASTER_TAKES = 600
"""Lines within a period that the master takes from a worker: twice what one sends that keeps to
these bounds, counts among it, as the two do not begin their periods at the same time.
"""
RETRY_S = 1.0
"""Seconds between two attempts to send counts to a master that does not read."""


class WorkerLog(logging.Handler):
    """Sends lines over `channel`; `tend` sends the counts of those that were not sent."""

    def __init__(self, channel: WorkerChannel) -> None:
        super().__init__()
        self.sandboxed = False
        """The process is in its sandbox, so that what is not permitted may be its doing."""
        self._channel = channel
        self._mutex = threading.RLock()  # a device may have threads
        # Two, so that no device hides a failure by talking.
        self._failures = LogLimit(PLACES_MOST)
        self._lines = LogLimit(PLACES_MOST, LINES_MOST)
        self._not_before = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line that the device logs."""
        self.note(place_of(record).key, record.levelno, lambda: texts.logged(record))

    def note(self, place: Hashable, level: int, text: Callable[[], str]) -> None:
        """Send a line. Unlike `emit`, nothing that a device does to `logging` is in its way."""
        with self._mutex:
            if self._lines.admits(place, text) and not self._send(level, text()):
                self._lines.lost(place, text)

    def failed(
        self, what: str, error: BaseException, about: str = "", *, then: str = "", file: str = ""
    ) -> None:
        """Send that the device's code failed: which method, about what, how, and what came of it.

        Failures are of one kind if they come from the same method, line of the device's `file` and
        class of exception. The first of a kind has its traceback; those that follow are counted,
        until there were none for a while.
        """
        if self.sandboxed and isinstance(error, PermissionError):
            then += HINT
        head = ": ".join(filter(None, (what, about, texts.described(error)))) + then
        kind = what, type(error), getattr(error, "errno", None), _line_of(error, file)
        with self._mutex:
            if not self._failures.admits(kind, lambda: head, burst=1, once=True):
                return
            trace = "" if error.__traceback__ is None else f"\n{texts.traceback_of(error)}"
            if not self._send(logging.ERROR, head + trace):
                self._failures.lost(kind, lambda: head)

    def due(self) -> float | None:
        """Seconds until `tend` has something to say, or None if it has not."""
        if not any(limit.pending for limit in self._limits):
            return None
        # A thread of the device's may be about to add a place.
        with self._mutex:
            waits = [each for limit in self._limits if (each := limit.due()) is not None]
        return max(min(waits), self._not_before - time.monotonic()) if waits else None

    def tend(self, *, at_last: bool = False) -> None:
        """Send the counts that are due; `at_last`: all, for nothing follows."""
        if not any(limit.pending for limit in self._limits):
            return
        with self._mutex:
            if not self._has_room():
                self._not_before = time.monotonic() + RETRY_S
                return
            for limit in self._limits:
                for text in limit.counts(all_of_them=at_last):
                    self._send(logging.WARNING, text, reserve=False)

    @property
    def _limits(self) -> tuple[LogLimit, LogLimit]:
        return self._failures, self._lines

    def _has_room(self) -> bool:
        """The socket polls as writable while three quarters of its room are free."""
        return self._channel.wait(0.0, select.POLLOUT)

    def _send(self, level: int, text: str, *, reserve: bool = True) -> bool:
        """False if there is no room beside what is reserved for answers, or nobody to read it: the
        loop finds out by itself that the master has gone.
        """
        try:
            if reserve and not self._has_room():
                return False
            self._channel.send(Logged(level, text), timeout=0.0)
        except ChannelError:
            return False
        return True


def _line_of(error: BaseException, file: str) -> tuple[str, int] | None:
    """The innermost line of `file` that the exception has passed, else the innermost of all."""
    found = None
    inside = False
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name == file or not inside:
            inside = inside or name == file
            found = name, trace.tb_lineno
        trace = trace.tb_next
    return found
