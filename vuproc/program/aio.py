"""The methods of a daemon for programs with an event loop of asyncio."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Self

from vuproc.device import Device
from vuproc.events import Stopped
from vuproc.fd import Fd
from vuproc.ops.status import Status
from vuproc.program.at_exit import STOP_TIMEOUT_S
from vuproc.program.flag import LOOK_S
from vuproc.program.running import START_TIMEOUT_S, Running
from vuproc.program.starting import Starting


class AsyncForms:
    """What waits, waits in a thread or for a descriptor, while the event loop goes on.

    Events come to `on_event` in a thread: `loop.call_soon_threadsafe` brings them to the loop.
    """

    if TYPE_CHECKING:

        def start(self, timeout: float = START_TIMEOUT_S) -> Self: ...  # noqa: D102
        def stop(self, timeout: float = STOP_TIMEOUT_S) -> Stopped | None: ...  # noqa: D102
        def status(self) -> Status: ...  # noqa: D102
        def restart_queue(self, number: int) -> None: ...  # noqa: D102
        def reload(self, device: Device | None = None) -> list[str]: ...  # noqa: D102
        def _run(self) -> Running: ...
        def _start(self, timeout: float, starting: Starting) -> None: ...

    async def start_async(self, timeout: float = START_TIMEOUT_S) -> Self:
        """As `start`, while the event loop goes on; what is cancelled leaves nothing."""
        starting = Starting()
        start = asyncio.ensure_future(asyncio.to_thread(self._start, timeout, starting))
        try:
            await asyncio.shield(start)
        except asyncio.CancelledError:
            starting.give_up()
            await asyncio.wait({start})
            if start.exception() is None:  # it was up already
                await asyncio.to_thread(self.stop)
            raise
        return self

    async def wait_async(self, timeout: float | None = None) -> Stopped | None:
        """As `wait`, while the event loop goes on; it may be cancelled."""
        running = self._run()
        deadline = None if timeout is None else time.monotonic() + timeout
        while not running.ended.is_set:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            flag = running.ended.copy()
            if flag is None:  # no descriptor is free
                await asyncio.sleep(LOOK_S if left is None else min(LOOK_S, left))
                continue
            with flag:
                await readable(flag, left)
        return running.stopped

    async def stop_async(self, timeout: float = STOP_TIMEOUT_S) -> Stopped | None:
        """As `stop`, while the event loop goes on."""
        return await asyncio.to_thread(self.stop, timeout)

    async def status_async(self) -> Status:
        """As `status`, while the event loop goes on."""
        return await asyncio.to_thread(self.status)

    async def restart_queue_async(self, number: int) -> None:
        """As `restart_queue`, while the event loop goes on."""
        await asyncio.to_thread(self.restart_queue, number)

    async def reload_async(self, device: Device | None = None) -> list[str]:
        """As `reload`, while the event loop goes on."""
        return await asyncio.to_thread(self.reload, device)

    async def __aenter__(self) -> Self:
        return await self.start_async()

    async def __aexit__(self, *error: object) -> None:
        await self.stop_async()


async def readable(file: Fd, timeout: float | None) -> None:
    """Until the descriptor is readable, or for so many seconds."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(file.fileno(), came.set)
    try:
        await asyncio.wait_for(came.wait(), timeout)
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(file.fileno())
