"""The two directions of a console's port: each byte passes once, whoever dies in between.

Between guest and host lie a spool (memory that workers share) and a pipe (kept by the kernel), so
that each step has one store, or one system call, that decides:

* request -> spool: a note says which request, and where the spool will end; then the request is
  shown to the driver as done, and then the spool has the bytes. Whoever finds the note asks whether
  the driver has seen that request (`Device.unfinished`): then the bytes count, else they come
  again. Of a request that is longer than a spool the note says how many parts have been taken.
* spool -> pipe: a note says where the spool began; bytes go into a pipe that is empty, and nobody
  takes any out of it until the note is gone. So what is in it tells how many have gone.
* pipe -> host: splice(2) moves bytes and takes them from the pipe in one call.

The way of the host's bytes is the same in the mirror.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING

from vuproc.devices.console_spool import SPOOL_BYTES, Spool, SpoolState

if TYPE_CHECKING:
    from vuproc.shm.request import Request

PIPE_BYTES = 4096
"""Bytes that pass together: a pipe that is empty takes them whole or not at all (PIPE_BUF)."""
MOST_BYTES = SPOOL_BYTES << 14
"""Bytes of the longest request: its parts are counted in 14 bits of a note."""
_NOTED = 1 << 63
_PART = 1 << 62
_WORD = (1 << 32) - 1
Publish = Callable[[], None]


class Outward:
    """From the guest to the host; `pipe` is its two ends, the one to read from first.

    `publish` shows the driver what is finished on the queue.
    """

    def __init__(self, state: SpoolState, pipe: tuple[int, int], publish: Publish) -> None:
        self._state = state
        self._spool = Spool(state)
        self._out, self._in = pipe
        self._publish = publish
        if state.pipe & _NOTED:
            # The worker before us died on the way from spool to pipe.
            self._sent(state.pipe & _WORD, inside(self._out))

    def settle(self, unfinished: frozenset[int]) -> None:
        """Before the first request of a ring is taken: what of those of a dead worker counts."""
        note = self._state.note
        if note & _PART:
            self._part_came(note)
        elif note & _NOTED and _head(note) not in unfinished:
            self._came(note & _WORD)
        self._state.note = 0
        if _head(self._state.part) not in unfinished:
            self._state.part = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is on its way."""
        return not self._spool.length and not inside(self._out)

    def take_in(self, request: Request) -> bool:
        """Take the bytes of a request, at most MOST_BYTES, and finish it; False: it has to come
        again when there is more room. Of one that is longer than a spool a part is taken each time.
        """
        part = self._state.part
        parts = part & _WORD if part & _NOTED and _head(part) == request.head else 0
        request.skip(parts * SPOOL_BYTES - (request.readable_total - request.readable))
        left = request.readable
        if left > SPOOL_BYTES and not self._spool.length:
            end = self._spool.put(request.read(SPOOL_BYTES))
            note = _NOTED | _PART | (parts + 1) << 48 | request.head << 32 | end
            self._state.note = note
            self._part_came(note)
            self._state.note = 0
            return False
        if left > self._spool.room:
            return False
        end = self._spool.put(request.read(left))
        self._state.note = _NOTED | request.head << 32 | end
        try:
            request.finish(0)
            self._publish()
        except Exception:
            self._state.note = 0  # the ring is gone: it was not seen
            raise
        self._came(end)
        self._state.part = 0
        self._state.note = 0
        return True

    @property
    def partly_in(self) -> bool:
        """Whether a part of a request has been taken, and not the last one."""
        return bool(self._state.part)

    def forget_part(self) -> None:
        """The driver has that request back, whatever was left of it."""
        self._state.part = 0

    def _part_came(self, note: int) -> None:
        self._state.part = _NOTED | _head(note) << 32 | (note >> 48 & 0x3FFF)
        self._came(note & _WORD)

    def _came(self, end: int) -> None:
        start = self._spool.start
        self._spool.keep(start, (end - start) & _WORD)

    def pass_on(self, sink: int) -> bool:
        """Move what there is to `sink`, a descriptor that does not wait; False if it takes no more
        for now. Raises OSError if it takes nothing any more.
        """
        while True:
            while inside(self._out):
                try:
                    self._hand_over(sink)
                except BlockingIOError:
                    return False
            data = self._spool.first(PIPE_BYTES)
            if not data:
                return True
            start = self._spool.start
            self._state.pipe = _NOTED | start
            self._sent(start, os.write(self._in, data))

    def _hand_over(self, sink: int) -> None:
        """Move some of what is in the pipe. Raises OSError."""
        try:
            os.splice(self._out, sink, PIPE_BYTES, flags=os.SPLICE_F_NONBLOCK)
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Not every file can be spliced to, such as one that is opened to append. A death between
        # these calls loses what was read.
        data, count = os.read(self._out, PIPE_BYTES), 0
        try:
            count = os.write(sink, data)
        finally:
            if count < len(data):
                os.write(self._in, data[count:])

    def _sent(self, start: int, count: int) -> None:
        end = self._spool.end
        self._spool.keep(start + count, (end - start - count) & _WORD)
        self._state.pipe = 0

    def discard(self) -> None:
        """Throw away what is on its way."""
        while count := inside(self._out):
            os.read(self._out, count)
        self._spool.keep(self._spool.end, 0)


class Inward:
    """From the host to the guest; as `Outward`, in the mirror."""

    def __init__(self, state: SpoolState, pipe: tuple[int, int], publish: Publish) -> None:
        self._state = state
        self._spool = Spool(state)
        self._out, self._in = pipe
        self._publish = publish
        if state.pipe & _NOTED:
            # The worker before us died on the way from pipe to spool.
            self._came((state.pipe & _WORD) - inside(self._out))

    def settle(self, unfinished: frozenset[int]) -> None:
        """Before the first buffer of a ring is taken: whether those of a dead worker came."""
        note = self._state.note
        if note & _NOTED and _head(note) not in unfinished:
            self._gone(note & _WORD)
        self._state.note = 0

    @property
    def waiting(self) -> bool:
        """Whether there are bytes for the guest."""
        return self._spool.length > 0

    @property
    def half_way(self) -> bool:
        """Whether a worker that died has left something to `take_in`."""
        return inside(self._out) > 0

    def take_in(self, source: int) -> bool:
        """Have what `source` gives, a descriptor that does not wait; False at its end.

        To be called when nothing is `waiting`. Raises OSError if it cannot be read.
        """
        if not inside(self._out):
            try:
                if not _moved(source, self._in):
                    return False
            except BlockingIOError:
                return True
        count = inside(self._out)
        views = self._spool.free(count)
        self._state.pipe = _NOTED | count
        self._came(os.readv(self._out, views))
        return True

    def _came(self, count: int) -> None:
        # Nothing was here, so it does not matter if this is done twice.
        self._spool.keep(self._spool.start, count)
        self._state.pipe = 0

    def give(self, buffer: Request) -> None:
        """Fill a buffer of the guest's, as far as there is something, and finish it."""
        data = self._spool.first(buffer.writable)
        start = (self._spool.start + len(data)) & _WORD
        self._state.note = _NOTED | buffer.head << 32 | start
        try:
            buffer.write(data)
            buffer.finish(len(data))
            self._publish()
        except Exception:
            self._state.note = 0  # the ring is gone: it was not seen
            raise
        self._gone(start)
        self._state.note = 0

    def _gone(self, start: int) -> None:
        self._spool.keep(start, (self._spool.end - start) & _WORD)

    def discard(self) -> None:
        """Throw away what is on its way."""
        while count := inside(self._out):
            os.read(self._out, count)
        self._spool.keep(self._spool.end, 0)


def inside(pipe: int) -> int:
    """Bytes that are in a pipe."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)


def _moved(source: int, pipe: int) -> int:
    """Move bytes into an empty pipe; how many. Raises OSError."""
    try:
        return os.splice(source, pipe, PIPE_BYTES, flags=os.SPLICE_F_NONBLOCK)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # Not every kind of file can be spliced from. A death between these two loses what was read.
    return os.write(pipe, data) if (data := os.read(source, PIPE_BYTES)) else 0


def _head(note: int) -> int:
    return note >> 32 & 0xFFFF
