"""The standby master: started and imported ahead of its time, it lacks only what is stored.

It waits at a socket of ours for the descriptors, and has no others: none of a session's, none of
guest memory. A death of the master then costs no start of Python.

    it ends by itself, or is killed     another after a pause from PAUSES_S, as long as they do so
    it is not ready after READY_S       it is killed
    no process to be had for one        another try after such a pause; that is said once
    it is not ready when it is wanted   it is killed, and a master is started as if there were none
    it does not take what it is sent    the same
    the master becomes another program  it is killed: it would be of the one before
"""

import os
import signal
import socket
import time
from collections.abc import Callable

from .descriptors import Stored, hand_over
from .processes import described

FIELD = "X_VUPROC_STANDBY"
"""What is said of it: "1" or "0", a master wants one or none; "ready", it is; "taken", it is the
master.
"""
NAME = "standby"
"""What its end of the socket is called."""
SETTLE_S = 1.0
"""Seconds from a master's wish to the start: a master that has just come up has the CPUs first."""
PAUSES_S = (1.0, 5.0, 25.0, 60.0)
"""Pause before another one, by the number of those in a row that were of no use."""
READY_S = 60.0
"""Seconds in which it must be ready."""
LASTING_S = 60.0
"""Seconds after which one that was ready so long begins a new row."""
SEND_S = 1.0
"""Seconds in which it must take the next message."""


class Standby:
    """The keeper's standby master, if there is one.

    `start` starts a process with its end of a socket, and returns its id; `say` shows a line.
    """

    def __init__(self, start: Callable[[int], int], say: Callable[[str], None]) -> None:
        self.pid = 0
        """Its process, 0: none."""
        self._start = start
        self._say = say
        self._channel: socket.socket | None = None
        self._start_at: float | None = None
        self._ready_at: float | None = None
        self._ready_by = 0.0
        self._useless = 0
        self._said = ""

    def wish(self, wanted: bool) -> None:
        """The master wants one, of the program that it is now; or none."""
        self.discard()
        self._start_at = time.monotonic() + SETTLE_S if wanted else None

    def ready(self) -> None:
        """It says that it is."""
        if self._ready_at is None:
            self._ready_at = time.monotonic()

    def due(self) -> float | None:
        """When `tend` should be called (time.monotonic), None: not for our sake."""
        if self.pid:
            return self._ready_by if self._ready_at is None else None
        return self._start_at

    def tend(self) -> None:
        """Start one if it is time, kill one that is not ready in time."""
        now = time.monotonic()
        if self.pid:
            if self._ready_at is None and now >= self._ready_by:
                self._ready_by = now + READY_S
                self._say(f"the standby master is not ready in {READY_S:g} s, killing it")
                os.kill(self.pid, signal.SIGKILL)
        elif self._start_at is not None and now >= self._start_at:
            self._launch()

    def _launch(self) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel = ours
            with theirs:
                self.pid = self._start(theirs.fileno())
        except OSError as error:
            self._forget()
            self._try_again(f"no standby master: {error.strerror}; trying again")
            return
        ours.settimeout(SEND_S)
        self._start_at = None
        self._ready_at, self._ready_by = None, time.monotonic() + READY_S

    def ended(self, code: int) -> None:
        """It has ended before anybody wanted it."""
        lasted = self._ready_at is not None and time.monotonic() - self._ready_at >= LASTING_S
        if lasted:
            self._useless, self._said = 0, ""
        text = f"the standby master ended ({described(code)}), starting another"
        self._forget()
        self._try_again(text)

    def _try_again(self, text: str) -> None:
        if text != self._said:
            self._say(text)
        self._said = text
        pause = PAUSES_S[min(self._useless, len(PAUSES_S) - 1)]
        self._useless += 1
        self._start_at = time.monotonic() + pause

    def take(self, stored: Stored) -> int:
        """Hand it all that is stored: its process id, which is the master's from now on.

        0 if there is none that is ready, or it does not take it. Whatever comes of it, another one
        is started for a master that wishes so.
        """
        self._start_at = None
        if self.pid and self._ready_at is not None and self._hand_over(stored):
            pid = self.pid
            self._useless, self._said = 0, ""
            self._forget()
            return pid
        self.discard()
        return 0

    def _hand_over(self, stored: Stored) -> bool:
        assert self._channel is not None
        try:
            hand_over(self._channel, stored)
        except OSError as error:
            self._say(f"the standby master is of no use: {error.strerror or error}")
            return False
        return True

    def discard(self) -> None:
        """Kill it; the keeper takes note of its end as of anybody else's."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        self._forget()

    def _forget(self) -> None:
        self.pid, self._ready_at = 0, None
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
