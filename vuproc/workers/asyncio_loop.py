"""An asyncio loop as the loop of a worker: for devices whose `handle` is a coroutine function.

asyncio polls the worker's poll set as one descriptor of its own, and the worker takes its turns
between the tasks. Imported for such devices only: a worker's start is its imports.
"""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

from vuproc.shm.request import Request
from vuproc.workers.poller import SELECT_FDS

Handle = Callable[[Request], Coroutine[Any, Any, object]]
OnError = Callable[[Request, BaseException], None]
OnTrouble = Callable[[str, BaseException | None], None]
Turn = Callable[[], None]
BeforeWait = Callable[[], float | None]


class AsyncioLoop:
    """Runs a worker's turns, and a task for each request.

    `on_error` has a request whose task raised; `on_trouble` what no request is to blame for, in
    words, such as an exception of a task of the device's own.
    """

    def __init__(self, handle: Handle, on_error: OnError, on_trouble: OnTrouble) -> None:
        self._selector = _Selector()
        self.loop = asyncio.SelectorEventLoop(self._selector)
        self.loop.set_exception_handler(
            lambda _loop, context: on_trouble(context["message"], context.get("exception"))
        )
        self._handle = handle
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()
        self._end: BaseException | None = None
        self._turn: Turn = lambda: None
        asyncio.set_event_loop(self.loop)

    def handle(self, request: Request) -> None:
        """Serve a request in a task of its own."""
        request.defer()
        task = self.loop.create_task(self._serve(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def run(
        self,
        number: int,
        turn: Turn,
        before_wait: BeforeWait,
        asleep: Callable[[bool], None],
    ) -> None:
        """Take a turn whenever descriptor `number` is readable. Raises what a turn raises.

        `before_wait` is called whenever asyncio has nothing left to do, and says in how many
        seconds, at the latest, a turn is to come. `asleep` is told when a wait begins and ends.
        """
        self._turn = turn
        self.loop.add_reader(number, self._take_turn)
        self._selector.begin(before_wait, asleep, self._call_turn)
        self._take_turn()
        if self._end is None:
            self.loop.run_forever()
        assert self._end is not None
        raise self._end

    def _call_turn(self) -> None:
        self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        try:
            self._turn()
        except BaseException as error:
            # What a callback of asyncio's raises would be logged, and not end the loop.
            self._end = error
            self.loop.stop()

    async def _serve(self, request: Request) -> None:
        # Until here it was open by our word; from here on by the device's.
        request.deferred = False
        try:
            answer = await self._handle(request)
            if answer is not None:
                raise TypeError(f"handle returned {type(answer).__name__}, not None")
            if not request.finished and not request.deferred:
                request.finish()
        except BaseException as error:
            # A cancelled task is a request that fails, too.
            if not request.finished:
                self._on_error(request, error)


class _Selector(selectors.EpollSelector):
    """What asyncio waits with: the worker has a last word before each wait."""

    def __init__(self) -> None:
        super().__init__()
        self._due: BeforeWait = lambda: None
        self._asleep: Callable[[bool], None] = lambda _asleep: None
        self._call_turn: Callable[[], None] = lambda: None

    def begin(
        self, due: BeforeWait, asleep: Callable[[bool], None], call_turn: Callable[[], None]
    ) -> None:
        """Ask these from now on."""
        self._due, self._asleep, self._call_turn = due, asleep, call_turn

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for a descriptor, or until asyncio (`timeout`) or the worker wants to go on."""
        due = self._due()
        if timeout is not None and timeout <= 0:
            # asyncio has more to do; it is here again when that is done.
            if due == 0.0:
                self._call_turn()
            return super().select(0)
        ends = timeout if due is None or (timeout is not None and timeout < due) else due
        if ends != 0.0:
            self._asleep(True)
            if ends is not None and self.fileno() < SELECT_FDS:
                # As the worker's poll set: epoll_wait(2) counts in milliseconds.
                select.select([self.fileno()], [], [], ends)
                ends = 0.0
        found = super().select(ends)
        self._asleep(False)
        if due is not None and not found:
            self._call_turn()
        return found
