"""Which run has written each piece of an image: shared memory, from which all workers read.

    0                  header
    _PIECES_AT         the number of a run for each piece, 8 bytes, in the order of the machine

Whoever writes changes back puts the new numbers here once they are in the manifest. A number is
stored at once; what it names is there for as long as the next run has not begun.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from array import array

import msgspec

from vuproc.devices.pieces_manifest import Base, Manifest, count_of
from vuproc.fd import Fd

_HEADER = struct.Struct("<QQI")
"""Bytes of the disk, of a piece, and of the description of the base that follows."""
_RUN_AT = 32
_BASE_AT = 64
_PIECES_AT = 8192
_BASE_BYTES = _PIECES_AT - _BASE_AT


class PiecesMap:
    """One process's view. `memory` is what `new_map` has made; close it yourself."""

    def __init__(self, memory: Fd) -> None:
        """Raises OSError."""
        head = os.pread(memory.fileno(), _PIECES_AT, 0)
        self.size: int
        self.piece: int
        self.size, self.piece, described = _HEADER.unpack_from(head)
        packed = head[_BASE_AT : _BASE_AT + described]
        self.base: Base | None = msgspec.msgpack.decode(packed, type=Base | None)
        self.count = count_of(self.size, self.piece)
        self._map = mmap.mmap(memory.fileno(), _PIECES_AT + 8 * self.count)
        self._words = memoryview(self._map)[_PIECES_AT:].cast("Q")
        self._run = memoryview(self._map)[_RUN_AT : _RUN_AT + 8].cast("Q")

    def close(self) -> None:
        """Give back the mapping; a second time is fine."""
        self._words.release()
        self._run.release()
        self._map.close()

    @property
    def run(self) -> int:
        """The run of the manifest that it was taken from."""
        return self._run[0]

    def run_of(self, piece: int) -> int:
        """The run that has written this piece, or ZEROS or BASE."""
        return self._words[piece]

    def by_piece(self) -> array[int]:
        """All of them."""
        return array("Q", self._words)

    def take(self, run: int, by_piece: array[int]) -> None:
        """What a newer manifest says."""
        for piece, number in enumerate(by_piece):
            if self._words[piece] != number:
                self._words[piece] = number
        self._run[0] = run


def new_map(manifest: Manifest) -> Fd:
    """Memory with what the manifest says. Raises OSError."""
    packed = msgspec.msgpack.encode(manifest.base)
    if len(packed) > _BASE_BYTES:
        raise OSError(0, "the name of the base is too long")
    memory = Fd(os.memfd_create("vuproc-pieces", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        number = memory.fileno()
        os.ftruncate(number, _PIECES_AT + 8 * len(manifest.pieces))
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        os.pwrite(number, _HEADER.pack(manifest.size, manifest.piece, len(packed)), 0)
        os.pwrite(number, array("Q", [manifest.number]), _RUN_AT)
        os.pwrite(number, packed, _BASE_AT)
        left = memoryview(manifest.by_piece()).cast("B")
        at = _PIECES_AT
        while left:
            written = os.pwrite(number, left, at)
            at += written
            left = left[written:]
    except BaseException:
        memory.close()
        raise
    return memory
