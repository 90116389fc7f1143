"""A disk in two layers: what the guest writes goes into an overlay, the rest stays in the base.

A chunk is read from the overlay if it is there, and from the base otherwise. What is stored first
is the content, then the table's byte: a worker that dies in between has added nothing, and the
request comes again. On stable storage it is the same order, at each flush.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from vuproc.devices.blk_overlay_file import Layout
from vuproc.devices.blk_overlay_table import CHUNK, ChunkTable
from vuproc.devices.blk_storage import Storage
from vuproc.devices.blk_store import OK, Range, complete
from vuproc.fd import Fd

if TYPE_CHECKING:
    from vuproc.shm.request import Request


class Overlay:
    """One worker's view of both layers. Owns the descriptors, and is done with by `close`.

    `base`: None if all that is needed of it is kept first (`keep`). `layout`: of the overlay's
    file; None for one in memory, which has content and nothing else.
    Offsets and lengths are the disk's, in bytes, and inside it.
    """

    def __init__(
        self, base: Fd | None, content: Fd, table: ChunkTable, size: int, layout: Layout | None
    ) -> None:
        self._base = base
        self._base_file = -1 if base is None else base.fileno()
        self._content = Storage(content)
        self._file = content.fileno()
        self._table = table
        self._size = size
        self._layout = layout
        self._at = 0 if layout is None else layout.content_at
        self.syncs = 0

    def close(self) -> None:
        """Tell the file which chunks it has, and close all. Raises OSError."""
        try:
            self.sync()
        finally:
            self._table.close()
            self._content.close()
            if self._base is not None:
                self._base.close()

    # The requests, as `Store` has them.

    def read(self, request: Request, offset: int, length: int) -> None:
        """From whichever layer has it. Raises OSError, also for a base that became shorter."""
        end = offset + length
        for present, chunk in self._runs(offset, end):
            file, at = (self._file, self._at) if present else (self._base_file, 0)
            run = min(chunk * CHUNK, end) - offset
            if run == length:
                request.finish_preadv(file, at + offset, length, done=OK)
                return
            _all(request.preadv, file, at + offset, run)
            offset += run
        complete(request)

    def write(self, request: Request, offset: int, length: int, *, durable: bool) -> None:
        """Into the overlay. Raises OSError."""
        at = self._at + offset
        if not durable and self._has_all(offset, length):
            request.finish_pwritev(self._file, at, length, done=OK)
            return
        self._store(offset, length, lambda: pwritev_all(request, self._file, at, length))
        self._complete(request, durable)

    def flush(self, request: Request) -> None:
        """Content, then bits. Raises OSError."""
        self._complete(request, True)

    def discard(self, request: Request, ranges: Sequence[Range], *, durable: bool) -> None:
        """Give what the overlay has back to its file system; what it has not stays the base's.
        Raises OSError.
        """
        for offset, length, _ in ranges:
            self.drop(offset, length)
        self._complete(request, durable)

    def write_zeroes(self, request: Request, ranges: Sequence[Range], *, durable: bool) -> None:
        """Cover the base with zeros. Raises OSError."""
        for offset, length, unmap in ranges:
            self.zero(offset, length, unmap=unmap)
        self._complete(request, durable)

    def ring_started(self, queue: int) -> None:
        """Nothing is a queue's own."""

    def ring_stopping(self, queue: int) -> None:
        """Nothing is under way between two requests."""

    # What they do.

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeros; `unmap`: it may take no room then. Raises OSError."""
        at = self._at + offset
        self._store(offset, length, lambda: self._content.write_zeroes(at, length, unmap=unmap))

    def drop(self, offset: int, length: int) -> None:
        """Have no room taken by what the overlay has of the range. Raises OSError."""
        end = offset + length
        for present, chunk in self._runs(offset, end):
            run = min(chunk * CHUNK, end) - offset
            if present:
                self._punch(offset, run)
            offset += run

    def _punch(self, offset: int, length: int) -> None:
        self._content.discard(self._at + offset, length)

    def keep(self, offset: int, data: bytes) -> None:
        """Have whole chunks of the base in the overlay, but for those that are there already.
        Raises OSError.
        """
        whole = memoryview(data)
        first, last = offset // CHUNK, (offset + len(data) - 1) // CHUNK
        with self._table.adding(first, last):
            start = first
            for present, end in list(self._table.runs(first, last)):
                if not present:
                    part = whole[start * CHUNK - offset : end * CHUNK - offset]
                    _write_all(self._file, part, self._at + start * CHUNK)
                    self._table.add(start, end - 1)
                start = end

    def sync(self) -> None:
        """Return once all that was written is on stable storage. Raises OSError."""
        if self._layout is None:
            return
        with self._table.flushing() as groups:
            self._sync()
            for group, bits in groups:
                _write_all(self._file, bits, self._layout.bits_at(group))
            if groups:
                self._sync()

    def _complete(self, request: Request, durable: bool) -> None:
        if durable:
            self.sync()
        complete(request)

    def _sync(self) -> None:
        self.syncs += 1
        os.fdatasync(self._file)

    def _runs(self, offset: int, end: int) -> Iterable[tuple[bool, int]]:
        return self._table.runs(offset // CHUNK, (end - 1) // CHUNK) if offset < end else ()

    def _has_all(self, offset: int, length: int) -> bool:
        return not length or self._table.has_all(offset // CHUNK, (offset + length - 1) // CHUNK)

    def _store(self, offset: int, length: int, content: Callable[[], object]) -> None:
        """Store by `content`, and have the chunks that it lies in."""
        if self._has_all(offset, length):
            content()
            return
        end = offset + length
        first, last = offset // CHUNK, (end - 1) // CHUNK
        with self._table.adding(first, last):
            if not self._table.has(first):
                self._copy_up(first * CHUNK, offset)
            if not self._table.has(last):
                self._copy_up(end, min((last + 1) * CHUNK, self._size))
            content()
            self._table.add(first, last)

    def _copy_up(self, offset: int, end: int) -> None:
        """The part of a chunk that is not written just now, from the base."""
        if offset >= end:
            return
        part = os.pread(self._base_file, end - offset, offset)
        if len(part) < end - offset:
            raise OSError(errno.EIO, "the base has become shorter")
        _write_all(self._file, part, self._at + offset)


def pwritev_all(request: Request, file: int, at: int, length: int) -> None:
    """The next `length` readable bytes of the request, to `at` of a file. Raises OSError."""
    _all(request.pwritev, file, at, length)


def _all(move: Callable[[int, int, int], int], file: int, at: int, length: int) -> None:
    """All of `length` bytes by a verb that may move fewer. Raises OSError."""
    while length:
        moved = move(file, at, length)
        if moved == 0:
            raise OSError(errno.EIO, "the file ends before it should")
        at += moved
        length -= moved


def _write_all(file: int, data: bytes | memoryview, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, at)
        at += written
        left = left[written:]
