"""An overlay whose base is far away: what is read of it is fetched by threads, and kept.

A request that needs what the overlay does not have waits until it does, and is served from there.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from vuproc.devices.blk_overlay import Overlay
from vuproc.devices.blk_overlay_file import Layout
from vuproc.devices.blk_overlay_table import CHUNK, ChunkTable
from vuproc.devices.blk_store import Range
from vuproc.errors import RequestFinished
from vuproc.fd import Fd

if TYPE_CHECKING:
    from vuproc.device import Device
    from vuproc.shm.request import Request

WINDOW = 1 << 20
"""Bytes that are fetched at a time, at a multiple of that."""
FETCHERS = 8
"""Threads of a worker, and so windows at a time."""


class Reader(Protocol):
    """What reads parts of the base, in any thread."""

    def read(self, offset: int, length: int) -> bytes:
        """That many bytes. Raises whatever says why they cannot be had."""

    def close(self) -> None:
        """Nobody reads any more."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request, what serves it, and the windows that it needs still."""

    request: Request
    serve: Callable[[], None]
    missing: set[int] = field(default_factory=set)
    error: BaseException | None = None
    gone: bool = False


class FetchingOverlay(Overlay):
    """As `Overlay`. In the worker's thread, but for the fetching itself."""

    def __init__(
        self,
        reader: Reader,
        device: Device,
        content: Fd,
        table: ChunkTable,
        size: int,
        layout: Layout | None,
    ) -> None:
        super().__init__(None, content, table, size, layout)
        self._reader = reader
        self._device = device
        self._windows: dict[int, list[_Waiting]] = {}
        self._wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._fetchers = 0
        # Windows in memory, fetched or about to be: no more come while the worker is busy.
        self._room = threading.Semaphore(FETCHERS)

    def read(self, request: Request, offset: int, length: int) -> None:
        """From the overlay, once it is there."""
        serve = super().read
        first, last = offset // CHUNK, (offset + length - 1) // CHUNK
        chunks = range(first, last + 1) if length else range(0)
        self._when_there(request, chunks, lambda: serve(request, offset, length))

    def write(self, request: Request, offset: int, length: int, *, durable: bool) -> None:
        """Into the overlay, once the rest of the first and the last chunk are there."""
        serve = super().write
        edges = self._edges([(offset, length, False)])
        self._when_there(request, edges, lambda: serve(request, offset, length, durable=durable))

    def write_zeroes(self, request: Request, ranges: Sequence[Range], *, durable: bool) -> None:
        """The same."""
        serve = super().write_zeroes
        self._when_there(
            request, self._edges(ranges), lambda: serve(request, ranges, durable=durable)
        )

    def ring_stopping(self, queue: int) -> None:
        """Give back what waits; what was fetched is there the sooner next time."""
        for waiting in {one for all_of in self._windows.values() for one in all_of}:
            if waiting.request.queue == queue and not waiting.gone:
                waiting.gone = True
                with contextlib.suppress(RequestFinished):
                    waiting.request.release()

    def close(self) -> None:
        """As that of `Overlay`; what is being fetched is not waited for."""
        for _ in range(self._fetchers):
            self._wanted.put(None)
        self._reader.close()
        super().close()

    def _edges(self, ranges: Iterable[Range]) -> list[int]:
        """The chunks of which only a part is written."""
        edges = []
        for offset, length, _ in ranges:
            end = offset + length
            if offset % CHUNK:
                edges.append(offset // CHUNK)
            if end % CHUNK and end < self._size:
                edges.append(end // CHUNK)
        return edges

    def _when_there(
        self, request: Request, chunks: Iterable[int], serve: Callable[[], None]
    ) -> None:
        missing = {chunk * CHUNK // WINDOW for chunk in chunks if not self._table.has(chunk)}
        if not missing:
            serve()
            return
        request.defer()
        waiting = _Waiting(request, serve, missing)
        for window in missing:
            if window not in self._windows:
                self._windows[window] = []
                self._fetch(window)
            self._windows[window].append(waiting)

    def _fetch(self, window: int) -> None:
        self._wanted.put(window)
        if self._fetchers < min(FETCHERS, len(self._windows)):
            self._fetchers += 1
            threading.Thread(target=self._fetch_all, name="fetch", daemon=True).start()

    def _fetch_all(self) -> None:
        while (window := self._wanted.get()) is not None:
            start = window * WINDOW
            self._room.acquire()
            try:
                data = self._reader.read(start, min(WINDOW, self._size - start))
            except BaseException as error:  # a window that is never handed over is waited for
                self._hand_over(window, b"", error)
            else:
                self._hand_over(window, data, None)

    def _hand_over(self, window: int, data: bytes, error: BaseException | None) -> None:
        self._device.call_soon(lambda: self._fetched(window, data, error))

    def _fetched(self, window: int, data: bytes, error: BaseException | None) -> None:
        self._room.release()
        if error is None:
            try:
                self.keep(window * WINDOW, data)
            except OSError as full:
                error = full
        if error is not None:
            self._device.log.error("%d bytes at %d: %s", WINDOW, window * WINDOW, error)
        for waiting in self._windows.pop(window):
            waiting.missing.discard(window)
            waiting.error = waiting.error or error
            if not waiting.missing and not waiting.gone:
                self._go_on(waiting)

    def _go_on(self, waiting: _Waiting) -> None:
        with contextlib.suppress(RequestFinished):
            try:
                if waiting.error is not None:
                    raise waiting.error
                waiting.serve()
            except RequestFinished:
                raise
            except BaseException as error:
                self._device.fail(waiting.request, error)
