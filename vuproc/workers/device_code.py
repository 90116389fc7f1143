"""Calls of the device's own code: the master sees when it is at it, and failures are logged."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vuproc.device import Device, serves_batches
from vuproc.errors import RequestAbandoned
from vuproc.shm.counters import QueueCounters
from vuproc.shm.request import Request
from vuproc.workers.log import WorkerLog
from vuproc.workers.queue import Queue

PEEK_BYTES = 16
"""Bytes of an abandoned request that are shown in the log: a header's worth."""


class DeviceCode:
    """The methods of `device`, as the loop calls them; `counters` are its queues'."""

    def __init__(self, device: Device, said: WorkerLog) -> None:
        self.counters: list[QueueCounters] = []
        self._device = device
        self._said = said
        self._failures_seen: dict[int, int] = {}
        """Those of native devices' failures that have been looked at."""

    @contextmanager
    def in_hook(self) -> Iterator[None]:
        """The device's own code may take longer than an order does: the master sees when it is at
        it.
        """
        for counters in self.counters:
            counters.count_hook()
        try:
            yield
        finally:
            for counters in self.counters:
                counters.count_hook()

    def hook(self, method: Callable[..., None], *args: object) -> bool:
        """Call the device's own code; what it raises is logged with the method's name and ends
        nothing. Whether it raised nothing.
        """
        try:
            with self.in_hook():
                method(*args)
        except Exception as error:
            self.failed(name_of(method), error)
            return False
        return True

    def enter(self) -> None:
        """The device's code is at it until `leave`: what asyncio runs between two turns."""
        for counters in self.counters:
            counters.count_hook()

    leave = enter

    def failed(self, what: str, error: BaseException, about: str = "", *, then: str = "") -> None:
        """Log what the device's code has raised."""
        module = sys.modules.get(type(self._device).__module__)
        file = getattr(module, "__file__", None) or ""
        self._said.failed(what, error, about, then=then, file=file)

    def trouble(self, message: str, error: BaseException | None) -> None:
        """Something of the device's that asyncio has run did not go well."""
        name = type(self._device).__name__
        self.failed(f"{name}, in asyncio", error or RuntimeError(message))

    # Requests.

    def request_failed(self, request: Request, error: BaseException) -> None:
        """The device's `handle`, or `handle_batch`, raised or returned something: this request
        fails, the queue goes on.
        """
        method = "handle_batch" if serves_batches(self._device) else "handle"
        about = f"queue {request.queue}, head {request.head}"
        self.failed(f"{type(self._device).__name__}.{method}", error, about)
        if request.finished:
            return
        self._fail(request, error)
        if not request.finished:
            request.finish()

    def request_skipped(self, request: Request, why: str, attempts: int) -> None:
        """Complete a dead worker's request which is not to run (again), and log why."""
        name = type(self._device).__name__
        chain = (
            f"queue {request.queue}, head {request.head}, {request.readable_total} bytes to read, "
            f"{request.writable_total} to write, begins {_beginning(request).hex() or 'empty'}"
        )
        if why == "drop":
            self._said.note(why, logging.WARNING, lambda: f"{name}: not run again: {chain}")
            request.finish(0)
            return
        cause = f"{attempts} workers died over it" if why == "poison" else "not run again"
        self._said.note(why, logging.ERROR, lambda: f"{name}: failed, as {cause}: {chain}")
        self._fail(request, RequestAbandoned(request.queue, request.head, attempts))
        if not request.finished:
            request.finish(0)

    def look_at_failures(self, queue: Queue) -> None:
        """Log what a native device has counted since the last look."""
        native = queue.native
        # By object: one may serve several rings.
        seen = self._failures_seen.get(id(native), 0)
        if native is None or native.failures == seen:
            return
        count, self._failures_seen[id(native)] = native.failures - seen, native.failures
        error = OSError(native.failure, os.strerror(native.failure))
        about = f"queue {queue.index}: {count} requests failed, the last"
        self.failed(f"{type(self._device).__name__}.native", error, about)

    def _fail(self, request: Request, error: BaseException) -> None:
        try:
            self._device.fail(request, error)
        except Exception as again:
            self.failed(f"{type(self._device).__name__}.fail", again)


def _beginning(request: Request) -> bytes:
    """The first bytes of a request, whose cursor stays where it is: `fail` is to read it."""
    found = b""
    for segment in request.readable_segments:
        if len(found) == PEEK_BYTES:
            break
        found += bytes(segment[: PEEK_BYTES - len(found)])
    return found


def name_of(method: Callable[..., None]) -> str:
    """What an author calls it."""
    return str(getattr(method, "__qualname__", type(method).__name__))
