"""Which pieces of a disk were changed since they were written back, and what they were like at the
moment of which a run writes: bytes in the overlay's file that workers and the helper share.

A run of the helper is of one moment, the change of the phase from QUIET to BEGINNING. A change of
the disk looks at the phase before and is on one side of it as a whole: it holds a lock on the phase
that it has seen, and the helper waits for those that are on the other side (as RCU does). A change
that begins once another is complete is never on the earlier side of it. So what is written back is
the disk as it was at some moment, though nobody had to wait for it.

    QUIET        changed pieces are marked in the first of two rows
    BEGINNING    in the other row; each chunk is saved before it is changed, since the first row is
                 not complete yet
    RUNNING      the first row says what this run writes; chunks of these pieces are saved before
                 they are changed

At the end the phase is QUIET again, and the rows have changed places. Deaths: a worker's lock ends
with it. A chunk is saved before it is changed, and a piece marked before that; so whoever dies has
marked or saved too much at most. Of the helper see `give_up`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from vuproc.devices.blk_overlay_file import Layout
from vuproc.devices.blk_overlay_table import CHUNK, ChunkTable, chunks_of
from vuproc.devices.blk_storage import Storage
from vuproc.devices.blk_write_area import PAGE, Area
from vuproc.devices.image_lock import FLOCK
from vuproc.devices.pieces_manifest import count_of
from vuproc.fd import Fd

_QUIET, _BEGINNING, _RUNNING = range(3)
_PHASES = 6
"""Numbers of the phases: three with the rows one way, three with the rows the other way."""
_PHASES_AT = 1 << 62
"""Locks of the open file (as in `blk_overlay_table`), behind all others."""
_ORDER_AT = _PHASES_AT + _PHASES

_SAVED, _ABSENT = 1, 2
"""Of a chunk since the run began: changed, and as it was in the room for that; changed, and the
overlay had none before; 0: unchanged.
"""
_COPIED = 1 << 20
"""Bytes that are saved at a time."""


def _row_of(phase: int) -> int:
    """Where changes are marked."""
    return int(phase in (1, 2, 3))


class Marks:
    """One process's view. `saved` is what `new_saved` has made; `table` stays the caller's."""

    def __init__(self, file: Fd, saved: Fd, table: ChunkTable, area: Area) -> None:
        """Raises OSError. `file`: the overlay's, the caller's."""
        self.area = area
        self._file = file
        self._table = table
        self._content_at = Layout(area.size).content_at
        self._count = count_of(area.size, area.piece)
        self._each = area.piece // CHUNK
        self._rows = (PAGE, PAGE + (area.marks_bytes - PAGE) // 2)
        self._map = mmap.mmap(file.fileno(), area.marks_bytes, offset=area.marks_at)
        # Opened anew: locks of one open file do not exclude each other, and workers must.
        self._saved_file = Fd(os.open(f"/proc/self/fd/{saved.fileno()}", os.O_RDWR | os.O_CLOEXEC))
        self._saved = mmap.mmap(self._saved_file.fileno(), chunks_of(area.size))

    def close(self) -> None:
        """Give all back that is its own; a second time is fine."""
        self._map.close()
        self._saved.close()
        self._saved_file.close()

    # A worker changes the disk.

    @contextmanager
    def changing(self, offset: int, length: int) -> Iterator[None]:
        """While it lasts, this range of the disk is changed. Raises OSError."""
        if not length:
            yield
            return
        phase = self._enter()
        try:
            self._prepare(phase, offset, length)
            yield
        finally:
            self._lock(fcntl.F_UNLCK, _PHASES_AT + phase)

    def unsaved(self, offset: int, length: int) -> bool:
        """Whether something of the range would have to be saved, were it changed now: not for
        what need not be done.
        """
        phase = self._map[0]
        first, last = self._pieces(offset, length)
        return phase % 3 == _BEGINNING or (
            phase % 3 == _RUNNING and self._first(1 - _row_of(phase), first, last + 1) >= 0
        )

    def _enter(self) -> int:
        while True:
            phase = self._map[0]
            self._lock(fcntl.F_RDLCK, _PHASES_AT + phase)
            if self._map[0] == phase:
                return phase
            self._lock(fcntl.F_UNLCK, _PHASES_AT + phase)

    def _prepare(self, phase: int, offset: int, length: int) -> None:
        first, last = self._pieces(offset, length)
        row = self._rows[_row_of(phase)]
        self._map[row + first : row + last + 1] = b"\1" * (last + 1 - first)
        if phase % 3 == _QUIET:
            return
        first_chunk, last_chunk = offset // CHUNK, (offset + length - 1) // CHUNK
        if phase % 3 == _BEGINNING:
            self._save(first_chunk, last_chunk)
            return
        other = 1 - _row_of(phase)
        while (piece := self._first(other, first, last + 1)) >= 0:
            start = piece * self._each
            self._save(max(first_chunk, start), min(last_chunk, start + self._each - 1))
            first = piece + 1

    def _save(self, first: int, last: int) -> None:
        """Save the chunks that are not yet, and note that."""
        if self._saved.find(b"\0", first, last + 1) < 0:
            return
        # Nobody else saves or adds one of them meanwhile: the other's change would be saved.
        with self._table.adding(first, last):
            for present, end in list(self._table.runs(first, last)):
                while (start := self._saved.find(b"\0", first, end)) >= 0:
                    first = self._first_saved(start, end)
                    if present:
                        self._copy(start, first)
                    mark = _SAVED if present else _ABSENT
                    self._saved[start:first] = bytes([mark]) * (first - start)
                first = end

    def _first_saved(self, start: int, end: int) -> int:
        found = (self._saved.find(bytes([mark]), start, end) for mark in (_SAVED, _ABSENT))
        return min((at for at in found if at >= 0), default=end)

    def _copy(self, first: int, end: int) -> None:
        """These chunks to where they are saved."""
        at, until = first * CHUNK, min(end * CHUNK, self.area.size)
        while at < until:
            part = self._read(self._content_at + at, min(until - at, _COPIED))
            left = memoryview(part)
            while left:
                written = os.pwrite(self._file.fileno(), left, self.area.saved_at + at)
                at += written
                left = left[written:]

    # The helper has a run. One process at a time.

    def changed(self) -> list[int]:
        """The pieces that were changed since the last run."""
        return self._marked(_row_of(self._map[0]))

    def begin(self) -> list[int]:
        """The moment; the pieces that a run is to write."""
        self._go_on()
        self._go_on()
        return self._marked(1 - _row_of(self._map[0]))

    def piece(self, number: int) -> tuple[bytearray, list[tuple[int, int]]]:
        """A piece as it was when the run began, and what is missing of it in the overlay: the
        ranges, from and to, of what the store has.
        """
        start = number * self.area.piece
        size = min(self.area.piece, self.area.size - start)
        first = start // CHUNK
        end = -(-(start + size) // CHUNK)
        present = [self._table.has(chunk) for chunk in range(first, end)]
        data = bytearray(self._read(self._content_at + start, size))
        # Pairs with the locks around `_save`: whoever has changed what was just read has noted
        # before that it was saved.
        self._lock(fcntl.F_WRLCK, _ORDER_AT)
        self._lock(fcntl.F_UNLCK, _ORDER_AT)
        saved = self._saved[first:end]
        missing: list[tuple[int, int]] = []
        for place in range(end - first):
            at = place * CHUNK
            to = min(at + CHUNK, size)
            if saved[place] == _SAVED:
                data[at:to] = self._read(self.area.saved_at + start + at, to - at)
            elif saved[place] == _ABSENT or not present[place]:
                if missing and missing[-1][1] == at:
                    missing[-1] = missing[-1][0], to
                else:
                    missing.append((at, to))
        return data, missing

    def finish(self) -> None:
        """The store has what the run was to write."""
        assert self._map[0] % 3 == _RUNNING
        row = self._rows[1 - _row_of(self._map[0])]
        self._map[row : row + self._count] = bytes(self._count)
        self._end()

    def give_up(self) -> None:
        """Take up what a helper has left that died: its pieces count as changed."""
        if self._map[0] % 3 == _BEGINNING:
            self._go_on()
        if self._map[0] % 3 == _RUNNING:
            mine = _row_of(self._map[0])
            for piece in self._marked(1 - mine):
                self._map[self._rows[mine] + piece] = 1
            self.finish()
        else:
            self._end(begun=False)

    def _end(self, *, begun: bool = True) -> None:
        if begun:
            self._map[0] = (self._map[0] + 1) % _PHASES
        self._await_others()
        # Nobody saves any more, and nobody has to know what was saved.
        Storage(self._saved_file).discard(0, chunks_of(self.area.size))
        Storage(self._file).discard(self.area.saved_at, self.area.size)

    def _go_on(self) -> None:
        self._map[0] = (self._map[0] + 1) % _PHASES
        self._await_others()

    def _await_others(self) -> None:
        """Until each change that has seen another phase than this one is done."""
        for phase in range(_PHASES):
            if phase != self._map[0]:
                self._lock(fcntl.F_WRLCK, _PHASES_AT + phase)
                self._lock(fcntl.F_UNLCK, _PHASES_AT + phase)

    def _marked(self, row: int) -> list[int]:
        marks = self._map[self._rows[row] : self._rows[row] + self._count]
        return [piece for piece, mark in enumerate(marks) if mark] if any(marks) else []

    def _first(self, row: int, first: int, end: int) -> int:
        """The first marked piece of some; -1: none is."""
        start = self._rows[row]
        found = self._map.find(b"\1", start + first, start + end)
        return found - start if found >= 0 else -1

    def _pieces(self, offset: int, length: int) -> tuple[int, int]:
        return offset // self.area.piece, (offset + length - 1) // self.area.piece

    def _read(self, at: int, size: int) -> bytes:
        data = os.pread(self._file.fileno(), size, at)
        if len(data) < size:
            raise OSError(0, "the overlay has been cut short")
        return data

    def _lock(self, kind: int, at: int) -> None:
        lock = FLOCK.pack(kind, 0, at, 1, 0)
        fcntl.fcntl(self._saved_file.fileno(), fcntl.F_OFD_SETLKW, lock)


def new_saved(size: int) -> Fd:
    """Memory for a byte a chunk of a disk of `size` bytes. Raises OSError."""
    memory = Fd(os.memfd_create("vuproc-saved", os.MFD_CLOEXEC))
    try:
        os.ftruncate(memory.fileno(), chunks_of(size))
    except BaseException:
        memory.close()
        raise
    return memory
