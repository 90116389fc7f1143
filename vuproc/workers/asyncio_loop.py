"""An asyncio loop as the loop of a worker: for devices whose `handle` is a coroutine function.

asyncio polls the worker's poll set as one descriptor of its own, and the worker takes its turns
between the tasks. Imported for such devices only: a worker's start is its imports.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn, Protocol

from vuproc.shm.request import Request
from vuproc.workers.poller import SELECT_FDS

Handle = Callable[[Request], Coroutine[Any, Any, object]]
Turn = Callable[[], None]


class Host(Protocol):
    """The worker whose loop asyncio is."""

    def task_failed(self, request: Request, error: BaseException) -> None:
        """The task of a request has raised."""

    def trouble(self, message: str, error: BaseException | None) -> None:
        """What no request is to blame for, in words, such as an exception of the device's task."""

    def step_begins(self, request: Request) -> None:
        """The task of a request goes on."""

    def step_ends(self, request: Request) -> None:
        """It waits again, or is done."""

    def turn(self) -> None:
        """One turn between two tasks. What it raises ends the loop."""

    def before_wait(self) -> float | None:
        """asyncio has nothing left to do: seconds within which a turn is to come."""

    def set_asleep(self, asleep: bool) -> None:
        """A wait begins, or ends."""

    def enter(self) -> None:
        """The device's code may be at it until `leave`."""

    def leave(self) -> None:
        """And from now on it is not."""


class AsyncioLoop:
    """Runs a worker's turns, and a task for each request."""

    def __init__(self, handle: Handle, host: Host) -> None:
        self._host = host
        self._handle = handle
        self._selector = _Selector(host, self._call_turn)
        self.loop = asyncio.SelectorEventLoop(self._selector)
        self.loop.set_exception_handler(
            lambda _loop, context: host.trouble(context["message"], context.get("exception"))
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._end: BaseException | None = None
        asyncio.set_event_loop(self.loop)

    def handle(self, request: Request) -> None:
        """Serve a request in a task of its own."""
        request.defer()
        task = self.loop.create_task(self._serve(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def run(self, number: int) -> NoReturn:
        """Take a turn whenever descriptor `number` is readable. Raises what a turn raises."""
        self.loop.add_reader(number, self._take_turn)
        self._selector.running = True
        self._take_turn()
        if self._end is None:
            self.loop.run_forever()
        assert self._end is not None
        raise self._end

    def _call_turn(self) -> None:
        self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._selector.turn_begins()
        try:
            self._host.turn()
        except BaseException as error:
            # What a callback of asyncio's raises would be logged, and not end the loop.
            self._end = error
            self.loop.stop()
        else:
            self._selector.turn_ends()

    async def _serve(self, request: Request) -> None:
        # Until here it was open by our word; from here on by the device's.
        request.deferred = False
        try:
            answer = await _Steps(self._handle(request), request, self._host)
            if answer is not None:
                raise TypeError(f"handle returned {type(answer).__name__}, not None")
            if not request.finished and not request.deferred:
                request.finish()
        except BaseException as error:
            # A cancelled task is a request that fails, too.
            if not request.finished:
                self._host.task_failed(request, error)


class _Steps:
    """Awaits a coroutine; each of its steps counts as the device's work on the request.

    A request whose step kills its worker is the one to blame, and a step that blocks is seen.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, object], request: Request, host: Host
    ) -> None:
        self._coroutine = coroutine
        self._request = request
        self._host = host

    def __await__(self) -> Generator[Any, Any, object]:
        error: BaseException | None = None
        while True:
            self._host.step_begins(self._request)
            try:
                if error is None:
                    awaited = self._coroutine.send(None)
                else:
                    awaited = self._coroutine.throw(error)
            except StopIteration as done:
                return done.value
            finally:
                self._host.step_ends(self._request)
            error = None
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown


class _Selector(selectors.EpollSelector):
    """What asyncio waits with: the worker has a last word before each wait."""

    def __init__(self, host: Host, call_turn: Callable[[], None]) -> None:
        super().__init__()
        self.running = False
        self._host = host
        self._call_turn = call_turn
        self._turn_by = float("inf")
        """When the next turn is to come, whatever else asyncio has to do until then."""
        self._inside = False

    def turn_begins(self) -> None:
        """The worker's own code is at it, and no turn is owed any more."""
        self._leave()
        self._turn_by = float("inf")

    def turn_ends(self) -> None:
        """asyncio goes on."""
        self._enter()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for a descriptor, or until asyncio (`timeout`) or the worker wants to go on."""
        if not self.running:
            return super().select(timeout)
        self._leave()
        due = self._host.before_wait()
        now = time.monotonic()
        if due is not None:
            self._turn_by = min(self._turn_by, now + due)
        ends = self._turn_by if timeout is None else min(self._turn_by, now + max(0.0, timeout))
        if ends > now:
            self._host.set_asleep(True)
            wait = None if ends == float("inf") else ends - now
            if wait is not None and self.fileno() < SELECT_FDS:
                # As the worker's poll set: epoll_wait(2) counts in milliseconds.
                select.select([self.fileno()], [], [], wait)
                wait = 0.0
            found = super().select(wait)
            self._host.set_asleep(False)
        else:
            found = super().select(0)
        if time.monotonic() >= self._turn_by:
            self._call_turn()
        self._enter()
        return found

    def _enter(self) -> None:
        if not self._inside:
            self._inside = True
            self._host.enter()

    def _leave(self) -> None:
        if self._inside:
            self._inside = False
            self._host.leave()
