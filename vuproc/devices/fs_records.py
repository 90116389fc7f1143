"""What a queue of a file system has begun that is not to be done twice.

A request is completed some time after it was served, with others, so that several of those that a
dead worker has served run again. For each that changes a directory, or opens a file, there is a
record: the request's number, which no other of the same mount has, and what was there before. A
request whose record is found has been run, or nearly so, and the error which that explains is no
error.

One worker at a time writes to the records of a queue, and the number comes last: a record without
it, or with an old one, is none, and was written before anything was done.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import cast

from vuproc import shared
from vuproc.fd import Fd

RECORDS = 256
"""Of a queue. At most 64 requests are completed together, and one is being served."""
WORD_BYTES = 8
UNIQUE, SESSION, BEFORE, HANDLE = range(4)
RECORD = 4
QUEUE = 1 + RECORDS * RECORD
"""Words of a queue: how many records were written, and the last of them."""


@dataclass(frozen=True, slots=True)
class Record:
    """`again`: the request has been run before. `before`, `handle`: what was noted then, or now."""

    before: int
    handle: int
    again: bool


def records_file(queues: int) -> Fd:
    """Memory for the records of so many queues."""
    fields = [("words", ctypes.c_uint64 * (queues * QUEUE))]
    kind = type("fs_records", (ctypes.Structure,), {"_fields_": fields})
    return shared.struct_file(cast("type[ctypes.Structure]", kind))


class Records:
    """The records of one queue."""

    def __init__(self, file: Fd, queue: int, queues: int, session: int) -> None:
        """`session`: the number of the mount; records of others do not count."""
        self._map = mmap.mmap(file.fileno(), queues * QUEUE * WORD_BYTES)
        self._words = memoryview(self._map).cast("Q")[queue * QUEUE : (queue + 1) * QUEUE]
        self._found: dict[int, Record] = {}
        for at in range(1, QUEUE, RECORD):
            unique, written, before, handle = self._words[at : at + RECORD]
            if unique and written == session:
                self._found[unique] = Record(before, handle, again=True)

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._map.close()

    def forget(self) -> None:
        """The guest has mounted anew, and counts its requests from the beginning."""
        self._found.clear()

    def begin(self, session: int, unique: int, before: int = 0, handle: int = 0) -> Record:
        """Note a request before it is done; what was noted of it by a dead worker, if it was."""
        found = self._found.get(unique)
        if found is not None:
            return found
        words = self._words
        at = 1 + words[0] % RECORDS * RECORD
        words[0] += 1  # first: this record is not to be written over by who comes next
        words[at + UNIQUE] = 0
        words[at + SESSION], words[at + BEFORE], words[at + HANDLE] = session, before, handle
        words[at + UNIQUE] = unique
        return Record(before, handle, again=False)
