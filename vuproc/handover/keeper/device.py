"""One device of a fleet: its masters are forks of the shared forkserver.

A master leads a process group of its own, and with it go its workers and whatever they start: so
what a dead one has left can be told from what is of other devices. While no shared forkserver can
be had, masters are executed as those of a device alone are.

A device that never came up since somebody whom it needs is away is tried again.
"""

import os
import signal
import time

from .error_output import ErrorOutput
from .keeper import AWAY, Keeper
from .processes import children, started
from .shared_forkserver import SharedForkserver

LIFE_S = 300.0
"""Seconds without a sign of life after which a master that is up is killed: signs of many devices
add up.
"""
AWAY_PAUSES_S = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds until the next try, by the number of tries before. Whoever asks for what is away may wait
for 15 s more before it has no answer.
"""


class FleetDevice(Keeper):
    """The keeper of one device; `file` is its device file, `name` that one's stem, `command` a
    master's, up to the file.
    """

    def __init__(
        self,
        name: str,
        file: str,
        command: list[str],
        forkserver: SharedForkserver,
        output: ErrorOutput,
    ) -> None:
        super().__init__([], output, name)
        self.name = name
        self.file = file
        self.removed = False
        """Its file is gone, and it is to be forgotten once it has ended."""
        self.said = False
        """It was said how it has ended."""
        self.waits = False
        """A master is wanted, and `go_on` has to be called for it."""
        self._tries = 0
        """So often somebody whom it needs was away."""
        self._may_begin = False
        self._command = command
        self._forkserver = forkserver
        self._group = 0
        self._life_s = LIFE_S

    @property
    def state(self) -> str:
        """In a word."""
        if self.code is not None:
            return "failed" if self.code else "stopped"
        if self.stopping:
            return "stopping"
        if self.up:
            return "running"
        return "waiting" if self.away else "starting"

    @property
    def away(self) -> bool:
        """It never came up, since somebody whom it needs was away; it is tried again."""
        return self._tries > 0 and not self._ever_up and self.code is None

    def try_now(self) -> None:
        """Wait no longer for the next try."""
        if self.away and self._start_at is not None:
            self._start_at = time.monotonic()

    def go_on(self) -> None:
        """The master that is waited for may be started now."""
        self.waits = False
        self._may_begin = True
        self._start_at = time.monotonic()

    def _begin(self) -> int:
        if not self._may_begin:
            self.waits = True
            return 0
        self._may_begin = False
        stored = self._store.entries
        if self._forkserver.ready:
            self._group = self._forkserver.fork(self.file, self._environ(), stored)
        else:
            environ = {**os.environ, **self._environ()}
            self._group = started(
                [*self._command, self.file], stored, environ, at_our_end=signal.SIGTERM, group=True
            )
        return self._group

    def _never_up(self, code: int) -> None:
        if code != AWAY or self.stopping:
            super()._never_up(code)
            return
        pause = AWAY_PAUSES_S[min(self._tries, len(AWAY_PAUSES_S) - 1)]
        self._tries += 1
        self._start_at = time.monotonic() + pause
        self._say(f"not served yet, trying again in {pause:g} s")

    def _kill_rest(self) -> bool:
        """Of the children that we have by now, those of its group; the master is reaped."""
        found = False
        if not self._group:
            return False
        try:
            os.killpg(self._group, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # one of them has become another user's
        for child in children():
            try:
                if os.getpgid(child) == self._group != child:
                    found = True
                    os.kill(child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        return found
