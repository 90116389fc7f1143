"""An asyncio loop as the loop of a worker: for devices whose `handle` is a coroutine function.

asyncio polls the worker's poll set as one descriptor of its own, and the worker takes its turns
between the tasks. Imported for such devices only: a worker's start is its imports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from vuproc.shm.request import Request

Handle = Callable[[Request], Coroutine[Any, Any, object]]
OnError = Callable[[Request, BaseException], None]


class AsyncioLoop:
    """Runs a worker's turns, and a task for each request."""

    def __init__(self, handle: Handle, on_error: OnError) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self._handle = handle
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()
        self._end: BaseException | None = None
        self._next: asyncio.Handle | None = None

    def handle(self, request: Request) -> None:
        """Serve a request in a task of its own."""
        request.defer()
        task = self.loop.create_task(self._serve(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def run(self, number: int, turn: Callable[[], float | None]) -> None:
        """Take a turn whenever descriptor `number` is readable, or when the last turn has asked for
        one in so many seconds. Raises what a turn raises.
        """
        asyncio.set_event_loop(self.loop)
        self.loop.add_reader(number, self._turn, turn)
        self._turn(turn)
        if self._end is None:
            self.loop.run_forever()
        self.loop.remove_reader(number)
        for task in self._tasks:
            task.cancel()
        assert self._end is not None
        raise self._end

    def _turn(self, turn: Callable[[], float | None]) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        try:
            again = turn()
        except BaseException as error:
            self._end = error
            self.loop.stop()
            return
        if again == 0.0:
            self._next = self.loop.call_soon(self._turn, turn)
        elif again is not None:
            self._next = self.loop.call_later(again, self._turn, turn)

    async def _serve(self, request: Request) -> None:
        try:
            answer = await self._handle(request)
            if answer is not None:
                raise TypeError(f"handle returned {type(answer).__name__}, not None")
            if not request.finished:
                request.finish()
        except BaseException as error:
            # A cancelled task is a request that fails, too.
            if not request.finished:
                self._on_error(request, error)
