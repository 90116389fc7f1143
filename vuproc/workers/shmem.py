"""What a device has asked for in its shared memory regions, until the answer comes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

from vuproc.errors import ShmemRefused
from vuproc.fd import Fd, HasFileno
from vuproc.mapping import ASKS_MAX, MapShmem, ShmemAsk, ShmemMapping, UnmapShmem
from vuproc.outcome import Outcome
from vuproc.workers.device_code import DeviceCode

HELD = "a ring is to stop, or memory to change"
OVER = "the session is over"
TOO_MANY = f"{ASKS_MAX} mappings are asked for already"


class ShmemRequests:
    """The requests of one worker; `say` tells the master, who answers each by its serial.

    The front-end may wait for this worker with a message, and answers nothing by then. So before
    the worker waits for requests that are in flight, all that is open is given up: a mapping that
    is made nevertheless is taken away again.
    """

    def __init__(self, say: Callable[[ShmemAsk], None], code: DeviceCode) -> None:
        self._say = say
        self._code = code
        self._serials = itertools.count(1)
        self._open: dict[int, tuple[ShmemAsk, Outcome[None]]] = {}
        self._given_up: dict[int, ShmemMapping] = {}
        """What is to be taken away if it comes to be."""
        self._held = False

    def map(self, mapping: ShmemMapping, file: HasFileno, file_offset: int) -> Outcome[None]:
        """Ask for a mapping; the file stays the caller's."""
        with Fd(os.dup(file.fileno())) as copy:
            return self._ask(MapShmem(next(self._serials), mapping, copy, file_offset))

    def unmap(self, mapping: ShmemMapping) -> Outcome[None]:
        """Ask for the end of one."""
        return self._ask(UnmapShmem(next(self._serials), mapping))

    def hold(self) -> None:
        """Give up what is open, and whatever is asked for until `release`."""
        self._held = True
        for serial, (ask, _) in self._open.items():
            if isinstance(ask, MapShmem):
                self._given_up[serial] = ask.mapping
        self._fail_all(HELD)

    def release(self) -> None:
        """Requests may wait for the front-end again."""
        self._held = False

    def end(self) -> None:
        """The session is over: no answer comes any more."""
        self._given_up.clear()
        self._fail_all(OVER)

    def answered(self, serial: int, problem: str) -> None:
        """The master's answer: "" for success."""
        given_up = self._given_up.pop(serial, None)
        if given_up is not None and not problem:
            self._say(UnmapShmem(next(self._serials), given_up))
        _, outcome = self._open.pop(serial, (None, None))
        if outcome is not None:
            self._settle(outcome, problem)

    def _ask(self, ask: ShmemAsk) -> Outcome[None]:
        outcome: Outcome[None] = Outcome()
        if self._held:
            self._settle(outcome, HELD)
        elif len(self._open) + len(self._given_up) >= ASKS_MAX:
            self._settle(outcome, TOO_MANY)
        else:
            self._open[ask.serial] = ask, outcome
            self._say(ask)
        return outcome

    def _fail_all(self, problem: str) -> None:
        left, self._open = self._open, {}
        for _, outcome in left.values():
            self._settle(outcome, problem)

    def _settle(self, outcome: Outcome[None], problem: str) -> None:
        outcome.settle(ShmemRefused(problem) if problem else None, self._code.hook)
