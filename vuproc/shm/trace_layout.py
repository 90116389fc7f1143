"""A queue's trace as Python reads it: the layout is that of vuproc/shm/trace.pxd."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vuproc.options import MAX_TRACE

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEADER = struct.Struct("=QQQ40x")
"""Room, requests begun so far, workers so far."""
ENTRY = struct.Struct("=QQQIIIIII16s")
ENTRY_BYTES = ENTRY.size
_ATTEMPTS = 3
"""At an entry that its worker is writing meanwhile; one that died so leaves it for good."""


class Traced(NamedTuple):
    """One request. Times are ns of the monotonic clock, as the worker has last looked at it.

    `order` numbers the queue's requests from 1 on, `worker` is the number of the worker that had
    it, among those of the queue so far. `ended` is 0 while it is in flight, `again` tells that
    another worker had had it before, and `first` are the first 16 bytes from the driver; zeros if
    its first piece is shorter.
    """

    order: int
    began: int
    ended: int
    head: int
    worker: int
    readable: int
    writable: int
    written: int
    again: int
    first: bytes


def trace_bytes(room: int) -> int:
    """Bytes that the trace of one queue takes, with `room` for so many requests."""
    return ENTRY_BYTES * (1 + room)


def read_trace(buffer: Buffer) -> tuple[int, list[Traced]]:
    """How many workers there were, and the requests, oldest first; none that is half written.

    The worker may write meanwhile. ([], 0) before the first of them has come.
    """
    memory = memoryview(buffer).cast("B")
    room, next_order, workers = HEADER.unpack_from(memory)
    if not 0 < room <= MAX_TRACE or len(memory) < trace_bytes(room):
        return 0, []
    found = [
        entry
        for order in range(max(0, next_order - room), next_order)
        if (entry := _entry(memory, ENTRY_BYTES * (1 + order % room), order + 1)) is not None
    ]
    return workers, found


def _entry(memory: memoryview, at: int, order: int) -> Traced | None:
    for _ in range(_ATTEMPTS):
        entry = Traced(*ENTRY.unpack_from(memory, at))
        if entry.order == order and int.from_bytes(memory[at : at + 8], "little") == order:
            return entry
    return None
