"""A worker in asyncio's loop: for devices whose `handle` is a coroutine function."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from mmap import mmap
from typing import Any, NoReturn, cast

from vuproc.device import Device
from vuproc.shm.request import Request
from vuproc.shm.segment import Segment
from vuproc.workers.asyncio_loop import AsyncioLoop
from vuproc.workers.control import WorkerChannel
from vuproc.workers.log import WorkerLog
from vuproc.workers.loop import Worker, soonest
from vuproc.workers.queue import BUDGET, Queue


class AsyncioWorker(Worker):
    """The same, between asyncio's tasks."""

    _budget = BUDGET

    def __init__(
        self, channel: WorkerChannel, device: Device, chain_limit: int, said: WorkerLog
    ) -> None:
        super().__init__(channel, device, chain_limit, said)
        handle = cast(Callable[[Request], Coroutine[Any, Any, object]], device.handle)
        self._asyncio = AsyncioLoop(handle, self)
        self._device_loop.asyncio = self._asyncio.loop

    def take(
        self,
        queues: tuple[int, ...],
        counters: Segment | mmap | None,
        limits: mmap | None = None,
        *,
        recovered: bool = False,
    ) -> None:
        """As that of Worker."""
        super().take(queues, counters, limits, recovered=recovered)
        for queue in self._queues.values():
            queue.handle = self._asyncio.handle

    def _serve_on(self) -> NoReturn:
        self._asyncio.run(self._watcher.fileno())

    def _window(self, queue: Queue) -> int:
        return 0  # a ring that looks for work keeps tasks from running

    # What asyncio's loop asks (asyncio_loop.Host).

    def turn(self) -> None:
        """One turn between two tasks."""
        for counters in self._counters:
            counters.note_commands()
        self._watcher.poll(0.0)
        self._turn()

    def before_wait(self) -> float | None:
        """Tasks have run: show the driver what they have finished. Seconds until the next turn, if
        no descriptor asks for one before.
        """
        for queue in self._queues.values():
            queue.publish()
        return soonest(self._patience(), self._due())

    def set_asleep(self, asleep: bool) -> None:
        """Say in the counters whether the worker sleeps."""
        if self._counters:
            self._counters[0].set_awake(not asleep)

    def task_failed(self, request: Request, error: BaseException) -> None:
        """The task of a request has raised: a ring counts only what `handle` itself raises."""
        for counters in self._counters:
            if counters.queue == request.queue:
                counters.count_error()
        self._code.request_failed(request, error)

    def trouble(self, message: str, error: BaseException | None) -> None:
        """Log what no request is to blame for."""
        self._code.trouble(message, error)

    def step_begins(self, request: Request) -> None:
        """The task of a request goes on: if it kills the worker, it is to blame."""
        self._queues[request.queue].step_begins(request)

    def step_ends(self, request: Request) -> None:
        """It waits again, or is done."""
        self._queues[request.queue].step_ends(request)

    def enter(self) -> None:
        """The device's code may be at it."""
        self._code.enter()

    def leave(self) -> None:
        """And from now on it is not."""
        self._code.leave()
