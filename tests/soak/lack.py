"""A process that gets no more of something, for a while."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Timer

from tests.soak.stage import Stage

LIFTS = 3
"""So often the limit is taken from all processes: a fork in the middle of it has its parent's."""


@contextmanager
def lacking(stage: Stage, pid: int, what: int, limit: int, seconds: float) -> Iterator[None]:
    """Have a process get no more of the resource `what` than `limit`, and whom it forks meanwhile.

    It is over after so many seconds even if that which is waited for inside needs it to be.
    """
    with suppress(ProcessLookupError):
        resource.prlimit(pid, what, (limit, _hard(what)))
    timer = Timer(seconds, _lift, (stage, what))
    timer.start()
    try:
        yield
    finally:
        timer.join()


def _lift(stage: Stage, what: int) -> None:
    for _ in range(LIFTS):
        for pid in stage.processes():
            with suppress(ProcessLookupError):
                resource.prlimit(pid, what, resource.getrlimit(what))


def _hard(what: int) -> int:
    return resource.getrlimit(what)[1]
