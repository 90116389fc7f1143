"""Which chunks of a disk an overlay has: a table in memory that all workers share.

A byte a chunk, so that each is stored by itself, and a mark for each group of chunks of which the
overlay's file does not know all yet. The table outlives workers and masters as its memory does.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from vuproc.devices.image_lock import FLOCK
from vuproc.fd import Fd

CHUNK = 4096
"""Bytes that are in the overlay or in the base as a whole: what file systems write at a time."""
GROUP = 4096
"""Chunks under one mark: 16 MiB of the disk, whose bits are one sector of the overlay's file."""
GROUP_BYTES = GROUP // 8
"""Bytes of the bits of one group."""

_ABSENT, _PRESENT = b"\0", b"\1"
_KNOWN, _CHANGED, _FLUSHING = 0, 1, 2
"""Marks: the file has all bits; or not; or someone is about to write them there."""

# Locks of the open file (fcntl(2), F_OFD_SETLKW), on bytes far behind the memory's own.
_CHUNKS_AT = 1 << 60
_MARKS_AT = 1 << 61
_FLUSH_AT = _MARKS_AT + 1

_EXPANDED = [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]
"""A byte of bits, the first chunk's the lowest, as a byte a chunk."""


class ChunkTable:
    """One process's view of the table. `memory` is what `new_table` has made; close it yourself."""

    def __init__(self, memory: Fd, size: int) -> None:
        """Raises OSError. `size`: bytes of the disk."""
        self._chunks = chunks_of(size)
        self._groups = groups_of(size)
        # Opened anew: locks of one open file do not exclude each other, and workers must.
        self._file = Fd(os.open(f"/proc/self/fd/{memory.fileno()}", os.O_RDWR | os.O_CLOEXEC))
        try:
            self._map = mmap.mmap(self._file.fileno(), self._chunks + self._groups)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Give back the mapping and the file; a second time is fine."""
        self._map.close()
        self._file.close()

    def has_all(self, first: int, last: int) -> bool:
        """Whether all chunks from `first` to `last` are there."""
        return self._map.find(_ABSENT, first, last + 1) < 0

    def has(self, chunk: int) -> bool:
        """Whether this one is there."""
        return self._map[chunk] != 0

    def runs(self, first: int, last: int) -> Iterator[tuple[bool, int]]:
        """Chunks `first` to `last` as runs of those that are there and those that are not: whether
        they are, and the chunk behind the run.
        """
        end = last + 1
        while first < end:
            present = self.has(first)
            found = self._map.find(_ABSENT if present else _PRESENT, first, end)
            first = end if found < 0 else found
            yield present, first

    @contextmanager
    def adding(self, first: int, last: int) -> Iterator[None]:
        """While it lasts, nobody else adds one of these chunks: what is stored for them is stored
        by whoever has them. A worker that dies has them no longer.
        """
        with self._locked(fcntl.F_WRLCK, _CHUNKS_AT + first, last + 1 - first):
            yield

    def add(self, first: int, last: int) -> None:
        """They are there from now on; their content is stored. To be called inside `adding`."""
        marks = range(first // GROUP, last // GROUP + 1)
        with self._locked(fcntl.F_RDLCK, _MARKS_AT):
            # The mark first: a worker that dies after it leaves a group that is written for
            # nothing, never a chunk that no flush knows of.
            for group in marks:
                self._map[self._chunks + group] = _CHANGED
            self._map[first : last + 1] = _PRESENT * (last + 1 - first)

    @contextmanager
    def flushing(self) -> Iterator[list[tuple[int, bytes]]]:
        """The groups whose bits must be stored once the content of their chunks is on stable
        storage, as (number, bits). They are held to be stored when the block ends without an
        exception. One flush at a time.
        """
        if not self._marked():
            yield []
            return
        with self._locked(fcntl.F_WRLCK, _FLUSH_AT):
            # Marks and bits at one moment, which no `add` is in the middle of.
            with self._locked(fcntl.F_WRLCK, _MARKS_AT):
                groups = self._marked()
                changed = [(group, self._bits(group)) for group in groups]
                for group in groups:
                    self._map[self._chunks + group] = _FLUSHING
            yield changed
            with self._locked(fcntl.F_WRLCK, _MARKS_AT):
                for group in groups:
                    if self._map[self._chunks + group] == _FLUSHING:
                        self._map[self._chunks + group] = _KNOWN

    def _marked(self) -> list[int]:
        marks = self._map[self._chunks :]
        if not any(marks):
            return []
        return [group for group, mark in enumerate(marks) if mark != _KNOWN]

    def _bits(self, group: int) -> bytes:
        start = group * GROUP
        there = self._map[start : min(start + GROUP, self._chunks)].ljust(GROUP, _ABSENT)
        # The first chunk is the lowest bit of an integer whose digits come highest first.
        digits = there[::-1].translate(_DIGITS).decode("ascii")
        return int(digits, 2).to_bytes(GROUP_BYTES, "little")

    @contextmanager
    def _locked(self, kind: int, start: int, length: int = 1) -> Iterator[None]:
        self._lock(kind, start, length)
        try:
            yield
        finally:
            self._lock(fcntl.F_UNLCK, start, length)

    def _lock(self, kind: int, start: int, length: int) -> None:
        fcntl.fcntl(self._file.fileno(), fcntl.F_OFD_SETLKW, FLOCK.pack(kind, 0, start, length, 0))


_DIGITS = bytes.maketrans(_ABSENT + _PRESENT, b"01")


def chunks_of(size: int) -> int:
    """Chunks of a disk of `size` bytes; the last may be a part of one."""
    return -(-size // CHUNK)


def groups_of(size: int) -> int:
    """Groups of chunks of a disk of `size` bytes."""
    return -(-chunks_of(size) // GROUP)


def new_table(size: int, bits: Iterator[tuple[int, bytes]]) -> Fd:
    """Memory with a table for a disk of `size` bytes. `bits`: (group, bits) of groups that have
    chunks. Raises OSError.
    """
    memory = Fd(os.memfd_create("vuproc-overlay", os.MFD_CLOEXEC))
    try:
        chunks = chunks_of(size)
        os.ftruncate(memory.fileno(), chunks + groups_of(size))
        for group, packed in bits:
            there = b"".join(map(_EXPANDED.__getitem__, packed))
            start = group * GROUP
            os.pwrite(memory.fileno(), there[: chunks - start], start)
    except BaseException:
        memory.close()
        raise
    return memory
