"""Bytes on their way through a console's port, in memory that outlives the worker.

They lie in a ring of bytes. One 8-byte store says which of them count, and who is killed before it
has changed nothing: what was copied beyond them is copied again.
"""

from __future__ import annotations

import ctypes
from typing import ClassVar

SPOOL_BYTES = 64 << 10
"""Bytes that wait in each direction of a port. Linux sends up to as many in one request."""
_WORD = (1 << 32) - 1


class SpoolState(ctypes.Structure):
    """One direction of a port, as it outlives workers."""

    _fields_: ClassVar = [
        ("range", ctypes.c_uint64),
        ("note", ctypes.c_uint64),
        ("pipe", ctypes.c_uint64),
        ("part", ctypes.c_uint64),
        ("data", ctypes.c_ubyte * SPOOL_BYTES),
    ]


class Spool:
    """The bytes from `start` to `end` of an endless row, at most SPOOL_BYTES of them."""

    def __init__(self, state: SpoolState) -> None:
        self._state = state
        self._data = memoryview(state.data).cast("B")

    @property
    def start(self) -> int:
        """The position of the first byte that is here."""
        return int(self._state.range) >> 32

    @property
    def length(self) -> int:
        """Bytes that are here."""
        word = int(self._state.range)
        return (word - (word >> 32)) & _WORD

    @property
    def room(self) -> int:
        """Bytes that there is room for."""
        return SPOOL_BYTES - self.length

    @property
    def end(self) -> int:
        """The position after the last byte."""
        return int(self._state.range) & _WORD

    def keep(self, start: int, length: int) -> None:
        """Have `length` bytes from position `start` on, and no others: this is the store."""
        self._state.range = (start & _WORD) << 32 | ((start + length) & _WORD)

    def put(self, data: bytes) -> int:
        """Copy bytes behind the end, where they do not count yet; the end that `keep` is to set."""
        assert len(data) <= self.room
        for piece, view in zip(*_cut(data, self._views(self.end, len(data))), strict=True):
            view[:] = piece
        return (self.end + len(data)) & _WORD

    def first(self, most: int) -> bytes:
        """Up to `most` bytes from the start."""
        return b"".join(map(bytes, self._views(self.start, min(most, self.length))))

    def free(self, most: int) -> list[memoryview]:
        """The places behind the end, for up to `most` bytes."""
        return self._views(self.end, min(most, self.room))

    def _views(self, position: int, length: int) -> list[memoryview]:
        at = position % SPOOL_BYTES
        head = self._data[at : at + length]
        rest = length - len(head)
        return [head, self._data[:rest]] if rest else [head]


def _cut(data: bytes, views: list[memoryview]) -> tuple[list[bytes], list[memoryview]]:
    pieces, at = [], 0
    for view in views:
        pieces.append(data[at : at + len(view)])
        at += len(view)
    return pieces, views
