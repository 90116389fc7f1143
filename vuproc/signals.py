"""Signals as events of the master's loop, from before its start to the end of its drain.

A handler of Python's own would raise in the middle of the drain, and the default action would end
the process there: sockets, locks and shared memory would stay behind.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT)
"""What asks for our end; the second of them asks not to wait for anything any more."""
ECHO_S = 0.5
"""Seconds within which a second SIGTERM or SIGINT counts as the same one: a terminal sends Ctrl-C
to the keeper and to its master, and the keeper passes its own on; timeout(1) signals its child and
then the child's group.
"""
READ_BYTES = 64
"""Signals that are taken in one turn."""


class Signals:
    """Catches signals until `close`; their numbers come from `take` once `fileno` is readable.

    `on_urgent` is called at once, in the middle of whatever this thread does, for the second and
    every further request for our end; while `starting`, for the first as well.
    """

    def __init__(self) -> None:
        self.on_urgent: Callable[[], None] = lambda: None
        self.starting = True
        """Nothing is served yet that would have to be finished."""
        self._end_asked_at: float | None = None
        self._before: dict[int, Any] = {}
        self._readable, self._written = socket.socketpair()
        self._readable.setblocking(False)
        self._written.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(
            self._written.fileno(), warn_on_full_buffer=False
        )
        for number in ENDING:
            self.catch(number)

    def fileno(self) -> int:
        """Readable while there is something to `take`."""
        return self._readable.fileno()

    @property
    def end_asked(self) -> bool:
        """Whether our end was asked for."""
        return self._end_asked_at is not None

    def catch(self, number: signal.Signals) -> None:
        """Have one more signal caught."""
        if number not in self._before:
            self._before[number] = signal.signal(number, self._caught)

    def let_in(self) -> None:
        """Unblock what is caught: the program that this process was before may have `hold` it."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)

    def hold(self) -> None:
        """What was not taken, and what comes from now on, waits, over an exec too."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._before)
        signal.set_wakeup_fd(-1)
        for number in self.take():
            os.kill(os.getpid(), number)

    def take(self) -> list[int]:
        """The numbers of signals that have come, oldest first."""
        try:
            return list(self._readable.recv(READ_BYTES))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Our end has come: what asks for it is ignored, and has nothing left to cut short; other
        signals do again what they did before.
        """
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if number in ENDING else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._readable.close()
        self._written.close()

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        """The number is at the socket already."""
        if number not in ENDING:
            return
        now = time.monotonic()
        first = self._end_asked_at is None
        if self._end_asked_at is None:
            self._end_asked_at = now
        if self.starting if first else now - self._end_asked_at >= ECHO_S:
            self.on_urgent()

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Requests:
    """What is asked of the master by signals: its end, or an action of its own for each."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._actions: dict[int, Callable[[], None]] = {}
        self._put_off: list[int] = []

    def on(self, number: signal.Signals, action: Callable[[], None]) -> None:
        """Have a signal lead to something else than our end."""
        self._actions[number] = action
        self._signals.catch(number)

    def hear(self, *, busy: bool) -> signal.Signals | None:
        """Act on what has come; the last that asked for our end. `busy`: no action may begin, and
        those that were asked for are put off.
        """
        ending = None
        for number in self._signals.take():
            # Others than both have a handler of somebody else's, such as the device's module.
            if number in self._actions:
                if busy:
                    self._put_off.append(number)
                else:
                    self._actions[number]()
            elif number in ENDING:
                ending = signal.Signals(number)
        return ending

    def catch_up(self) -> None:
        """Do what was put off."""
        put_off, self._put_off = self._put_off, []
        for number in put_off:
            self._actions[number]()
