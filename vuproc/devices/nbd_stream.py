"""A connection to an NBD server on which commands go out and replies come in, in any order.

It never waits: whoever has it calls `turn` when its descriptor is readable.
"""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vuproc.devices.nbd_handshake import NbdError
from vuproc.spec import nbd
from vuproc.spec.nbd import Command

READ_BYTES = 256 << 10
"""Bytes of one look at the socket."""
MOST_PARTS = 64
"""Pieces of memory that one call sends."""
LOOKS = 16
"""So often is it looked at in a row; the queue wants its turn, too."""


@dataclass(slots=True)
class Piece:
    """One command: `into` gets what was read (its place in the piece, the bytes), `done` the error,
    or 0. `data` is what is written.
    """

    kind: Command
    flags: int
    offset: int
    length: int
    done: Callable[[int], None]
    data: bytes = b""
    into: Callable[[int, memoryview], None] | None = None


@dataclass(slots=True)
class _Reading:
    """The bytes of a reply: whose they are, and how many have come."""

    cookie: int
    piece: Piece
    come: int = 0


class NbdStream:
    """`outstanding`: the commands without a whole reply, by their cookies, in the order in which
    they were sent. `answered`: whether there was a reply at all. `heard`: since when the server has
    said nothing though there are commands (time.monotonic). The socket is its own from now on.
    """

    # Cookies count up from 1. `_sent_whole` is the last of those that were sent to their end, which
    # `_ends` has for the others: bytes of the stream, and the cookie.

    def __init__(self, connected: socket.socket) -> None:
        self.connected = connected
        self.outstanding: dict[int, Piece] = {}
        self.answered = False
        self.heard = time.monotonic()
        self._cookie = 0
        self._sent_whole = 0
        self._queued = self._sent = 0
        self._ends: deque[tuple[int, int]] = deque()
        self._going: deque[memoryview] = deque()
        self._come = bytearray()
        self._reading: _Reading | None = None
        self._buffer = bytearray(READ_BYTES)
        connected.setblocking(False)
        # One descriptor to watch, whichever way the socket is waited for.
        self._poll = select.epoll()
        self._poll.register(connected, select.EPOLLIN)
        self._waits_for_room = False

    def fileno(self) -> int:
        """Readable when there is something to do."""
        return self._poll.fileno()

    def close(self) -> None:
        """Hang up; what is outstanding is the caller's."""
        self._poll.close()
        self.connected.close()

    def send(self, piece: Piece) -> None:
        """Have a command go out, with the next `turn`."""
        self._cookie += 1
        if not self.outstanding:
            self.heard = time.monotonic()
        self.outstanding[self._cookie] = piece
        head = nbd.COMMAND.pack(
            nbd.COMMAND_MAGIC, piece.flags, piece.kind, self._cookie, piece.offset, piece.length
        )
        self._going.append(memoryview(head))
        if piece.data:
            self._going.append(memoryview(piece.data))
        self._queued += len(head) + len(piece.data)
        self._ends.append((self._queued, self._cookie))

    def turn(self) -> None:
        """Send and receive as much as there is room for, and there. Raises NbdError or OSError:
        then the connection is lost, and what is outstanding has no answer.
        """
        self._send_all()
        for _ in range(LOOKS):
            try:
                count = self.connected.recv_into(self._buffer)
            except BlockingIOError:
                break
            if count == 0:
                raise NbdError("the server hung up")
            self.heard = time.monotonic()
            self._take(memoryview(self._buffer)[:count])

    def _send_all(self) -> None:
        while self._going:
            parts = list(itertools.islice(self._going, MOST_PARTS))
            try:
                sent = self.connected.sendmsg(parts, [], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            self._sent += sent
            while self._ends and self._ends[0][0] <= self._sent:
                self._sent_whole = self._ends.popleft()[1]
            while sent:
                first = self._going[0]
                if sent < len(first):
                    self._going[0] = first[sent:]
                    break
                sent -= len(first)
                self._going.popleft()
        waits = bool(self._going)
        if waits != self._waits_for_room:
            self._waits_for_room = waits
            more = select.EPOLLOUT if waits else 0
            self._poll.modify(self.connected, select.EPOLLIN | more)

    def _take(self, data: memoryview) -> None:
        while data:
            if self._reading is None:
                data = self._take_header(data)
            else:
                data = self._take_payload(self._reading, data)

    def _take_header(self, data: memoryview) -> memoryview:
        missing = nbd.SIMPLE_REPLY.size - len(self._come)
        self._come += data[:missing]
        if len(self._come) == nbd.SIMPLE_REPLY.size:
            magic, error, cookie = nbd.SIMPLE_REPLY.unpack(self._come)
            self._come.clear()
            piece = self.outstanding.get(cookie)
            if magic != nbd.SIMPLE_REPLY_MAGIC or piece is None or cookie > self._sent_whole:
                raise NbdError("the server answers what it was not asked")
            if error == nbd.ESHUTDOWN:
                raise NbdError("the server is about to end")
            self.answered = True
            if piece.kind is Command.READ and not error:
                self._reading = _Reading(cookie, piece)
            else:
                del self.outstanding[cookie]
                piece.done(error)
        return data[missing:]

    def _take_payload(self, reading: _Reading, data: memoryview) -> memoryview:
        part = data[: reading.piece.length - reading.come]
        if reading.piece.into is not None:
            reading.piece.into(reading.come, part)
        reading.come += len(part)
        if reading.come == reading.piece.length:
            self._reading = None
            del self.outstanding[reading.cookie]
            reading.piece.done(0)
        return data[len(part) :]
