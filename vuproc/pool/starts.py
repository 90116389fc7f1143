"""How workers come to be: each with a number for what it reports, and all of them to be killed at
once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

from vuproc.pool.forkserver import CannotStart
from vuproc.pool.process import WorkerProcess
from vuproc.workers.control import Said

OnReport = Callable[[Said], None]


class WorkerStarts:
    """Starts the workers of one device by `start`.

    `on_report(number, report)` gets what they say unasked, with the number of who says it.
    """

    def __init__(
        self,
        start: Callable[[OnReport], WorkerProcess],
        on_report: Callable[[int, Said], None],
    ) -> None:
        self._start = start
        self._on_report = on_report
        self._numbers = itertools.count()
        self._workers: tuple[WorkerProcess, ...] = ()
        self._abandoned = False

    def another(self) -> WorkerProcess:
        """A new worker process. Raises `CannotStart`."""
        if self._abandoned:
            raise CannotStart("the device is ending")
        number = next(self._numbers)
        worker = self._start(partial(self._on_report, number))
        worker.number = number
        # In one store, as `abandon` may come at any instruction.
        self._workers = (*(old for old in self._workers if not old.closed), worker)
        self._kill_if_abandoned(worker)
        return worker

    def pids(self) -> list[int]:
        """Of all that were started and whose end was not seen to yet."""
        return [worker.pid for worker in self._workers if not worker.closed]

    def abandon(self) -> None:
        """Kill all there are, and start no other. May be called by a signal handler."""
        self._abandoned = True
        for worker in self._workers:
            worker.kill_at_once()

    def _kill_if_abandoned(self, worker: WorkerProcess) -> None:
        """That may have come while the process was being started."""
        if self._abandoned:
            worker.kill()
