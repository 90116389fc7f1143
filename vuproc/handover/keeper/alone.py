"""The keeper of one device, whose masters are programs that it executes.

    python -I -S __main__.py [--hand NAME=NUMBER]... COMMAND [ARGUMENT...]

Each descriptor that is to be handed on goes to every master under its name. Another master is the
standby master, if one is ready (`standby.py`); else it is started.
"""

import os
import select
import signal
import time

from .descriptors import Stored, inherited
from .error_output import ErrorOutput
from .keeper import DEVICE_FILE, NOT_FOR_A_STANDBY, Keeper
from .loop import Wake, ignore_end, milliseconds, reap
from .processes import PREFIX, kill_children, started
from .standby import FIELD, Standby
from .standby import NAME as STANDBY


class KeeperAlone(Keeper):
    """One device and its loop. `command` is a master's, `handed` goes to every one."""

    def __init__(self, command: list[str], handed: Stored) -> None:
        super().__init__([*inherited(), *handed], ErrorOutput(PREFIX))
        self._command = command
        self._standby = Standby(self._start_standby, self._say)

    def run(self) -> int:
        """Keep a master running until one ends in order; returns the exit code."""
        wake = Wake()
        poller = select.poll()
        poller.register(self.inbox, select.POLLIN)
        poller.register(wake, select.POLLIN)
        while not self.over:
            waits = [self.due(), self._output.due()]
            poller.poll(milliseconds([wait for wait in waits if wait is not None]))
            self.hear()
            for number in wake.take():
                self.signalled(number)
            reap(self._hear_last, self._ended)
            self._output.say_lost()
            self.tend()
        ignore_end()
        assert self.code is not None
        return self.code

    def due(self) -> float | None:
        """As the keeper's, and for the standby's sake."""
        due_at, due = self._standby_due(), super().due()
        if due_at is None:
            return due
        left = due_at - time.monotonic()
        return left if due is None else min(left, due)

    def tend(self) -> None:
        """As the keeper's, and for the standby's sake."""
        if (due_at := self._standby_due()) is not None and time.monotonic() >= due_at:
            self._standby.tend()
        super().tend()

    def _standby_due(self) -> float | None:
        """A master that is to end needs none, nor is one started while there is no master."""
        return self._standby.due() if self.master and not self._stopping else None

    def _hear_last(self, pid: int) -> None:
        if pid == self.master:
            self.hear()

    def _ended(self, pid: int, code: int) -> None:
        if pid == self.master:
            self.master_ended(code)
        elif pid == self._standby.pid:
            self._standby.ended(code)

    # Where masters come from.

    def _begin(self) -> int:
        pid = self._standby.take(self._store.entries)
        if pid:
            self._takes_over()
            return pid
        environ = {**os.environ, **self._environ()}
        return started(self._command, self._store.entries, environ, at_our_end=signal.SIGTERM)

    def _start_standby(self, channel: int) -> int:
        # What is in force may say what is worth importing. Of a session it has nothing.
        given = [entry for entry in self._store.entries if entry[0] == DEVICE_FILE]
        given.append((STANDBY, channel))
        return started(
            self._command,
            given,
            {**os.environ, **self._environ()},
            at_our_end=signal.SIGKILL,
            ignoring=NOT_FOR_A_STANDBY,
        )

    def _kill_rest(self) -> bool:
        return kill_children((self.master, self._standby.pid))

    def _wish(self, wanted: bool) -> None:
        self._standby.wish(wanted)

    def _heard(self, sender: int, text: str) -> None:
        if sender == self._standby.pid and text == f"{FIELD}=ready":
            self._standby.ready()

    def _discard(self) -> None:
        self._standby.discard()
