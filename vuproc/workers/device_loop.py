"""What a device may ask of the loop it runs in (vuproc.device.Loop)."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vuproc.asks import Ask
from vuproc.fd import HasFileno
from vuproc.mapping import ShmemMapping
from vuproc.outcome import Outcome
from vuproc.shm.handling import hurry
from vuproc.shm.request import Request
from vuproc.workers.config_report import ConfigReport
from vuproc.workers.control import CONFIG_QUEUE
from vuproc.workers.device_code import DeviceCode, name_of
from vuproc.workers.poller import Callback, Watcher, is_ready
from vuproc.workers.queue import Queue
from vuproc.workers.shmem import ShmemRequests
from vuproc.workers.timers import Soon, Timer, Timers

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class DeviceLoop:
    """Descriptors, timers and calls of one device; what they raise is logged.

    `queues` are those of the worker, by number; `say` is for what the master is asked.
    """

    def __init__(
        self,
        watcher: Watcher,
        code: DeviceCode,
        queues: dict[int, Queue],
        say: Callable[[Ask], None],
    ) -> None:
        self._say = say
        self.shmem = ShmemRequests(say, code)
        self.config: ConfigReport | None = None
        self.asyncio: AbstractEventLoop | None = None
        self._watcher = watcher
        self._code = code
        self._queues = queues
        self._watched: dict[int, Callback] = {}
        self._timers = Timers()
        self._soon = Soon()
        watcher.add(self._soon.fileno(), lambda _mask: self._soon.run(self._call))

    @property
    def watches(self) -> bool:
        """Whether the device waits for something on descriptors of its own."""
        return bool(self._watched)

    @property
    def waker(self) -> int:
        """What wakes the loop when it is written to."""
        return self._soon.fileno()

    def due(self) -> float | None:
        """Seconds until the next timer, or None."""
        return self._timers.due()

    def tend(self) -> None:
        """Run the timers that are due."""
        if self._timers.due() == 0.0:
            self._timers.run(self._call)

    def close(self) -> None:
        """Close what it has open."""
        self._soon.close()

    # The device's side.

    def watch(self, fd: int | HasFileno, callback: Callable[[], None], *, write: bool) -> None:
        """Call `callback` when the device's own descriptor is readable (or writable), until it
        fails and leaves it so.
        """
        number = fd if isinstance(fd, int) else fd.fileno()
        events = select.EPOLLOUT if write else select.EPOLLIN

        def ready(_mask: int) -> None:
            try:
                with self._code.in_hook():
                    callback()
            except Exception as error:
                # What it has not read is there still: it would be called again at once, for ever.
                then = ""
                if self._watched.get(number) is ready and is_ready(number, events):
                    self.unwatch(number)
                    then = f"; descriptor {number} is no longer watched"
                self._code.failed(name_of(callback), error, then=then)

        self._watcher.add(number, ready, events)
        self._watched[number] = ready
        hurry()

    def unwatch(self, fd: int | HasFileno) -> None:
        """Stop calling back for `fd`."""
        number = fd if isinstance(fd, int) else fd.fileno()
        callback = self._watched.pop(number, None)
        if callback is not None:
            self._watcher.remove(number, callback)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop's thread; from any thread."""
        self._soon.add(callback)
        hurry()

    def call_later(self, seconds: float, callback: Callable[[], None], *, again: bool) -> Timer:
        """Call `callback` in so many seconds, or every so many. Raises ValueError."""
        timer = self._timers.add(seconds, callback, again=again)
        hurry()
        return timer

    def config_changed(self) -> None:
        """Have the driver read the configuration space again. Raises RuntimeError in a worker that
        does not speak for it.
        """
        if self.config is None:
            raise RuntimeError("config_changed is for the worker of queue 0")
        self.config.changed()

    def ask(self, ask: Ask) -> None:
        """Have the master see to something at the front-end. Raises RuntimeError in a worker
        without queue 0.
        """
        self._check_speaker("shared objects are")
        self._say(ask)

    def map_shmem(self, mapping: ShmemMapping, file: HasFileno, file_offset: int) -> Outcome[None]:
        """Have a file mapped in a shared memory region. Raises RuntimeError in a worker without
        queue 0.
        """
        self._check_speaker("shared memory is")
        return self.shmem.map(mapping, file, file_offset)

    def unmap_shmem(self, mapping: ShmemMapping) -> Outcome[None]:
        """Have that taken away. Raises RuntimeError in a worker without queue 0."""
        self._check_speaker("shared memory is")
        return self.shmem.unmap(mapping)

    def _check_speaker(self, what: str) -> None:
        if CONFIG_QUEUE not in self._queues:
            raise RuntimeError(f"{what} for the worker of queue 0")

    def take(self, queue: int) -> Request | None:
        """The next request of a queue that the device pulls from. Raises ValueError for another."""
        return self._pulled(queue).take()

    def publish(self, queue: int) -> None:
        """Show the driver what is finished on a queue that the device pulls from. Raises ValueError
        for another.
        """
        self._pulled(queue).publish()

    def unfinished(self, queue: int) -> frozenset[int] | None:
        """The heads of the requests that a dead worker has left unfinished. Raises ValueError for
        another worker's queue.
        """
        return self._own(queue).unfinished

    def finish_together(self, requests: Sequence[Request]) -> None:
        """Complete requests of one queue, which the driver is to see all at once."""
        if requests:
            self._own(requests[0].queue).finish_together(list(requests))

    def count_dropped(self, queue: int, count: int) -> None:
        """Count what the device has thrown away. Raises ValueError for another worker's queue."""
        self._own(queue).count_dropped(count)

    @property
    def asyncio_loop(self) -> AbstractEventLoop:
        """The asyncio loop that the worker runs in. Raises RuntimeError if it runs in none."""
        if self.asyncio is None:
            raise RuntimeError("handle is not an async def: there is no asyncio loop")
        return self.asyncio

    def _pulled(self, queue: int) -> Queue:
        if queue not in self._queues or not self._queues[queue].pulled:
            raise ValueError(f"queue {queue} is none of this worker that the device pulls from")
        return self._queues[queue]

    def _own(self, queue: int) -> Queue:
        if queue not in self._queues:
            raise ValueError(f"queue {queue} is none of this worker")
        return self._queues[queue]

    def _call(self, callback: Callable[[], None]) -> None:
        self._code.hook(callback)
