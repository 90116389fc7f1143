"""Bytes to and from a host's socket, so that it is known after a death how many of them went.

A program can do nothing between a system call and the store of what it returned, but it can be
killed there. sendmmsg(2) and recvmmsg(2) store it themselves: the length of each message goes to
the `struct mmsghdr` that they are given, before they return, and a signal ends nobody inside the
kernel. That structure lies in the table here. So:

1. `base`, `slot` and a length of 0 are stored, and last `moving`: a transfer is under way;
2. the kernel moves bytes, and stores how many;
3. `settle` commits what follows from that, and `moving` = 0, in one step.

A worker that died at 1 has moved nothing, and the length is 0. At 2 the length is 0 or final. At 3
the next one does the same again. What was received lies in the table as well, at `base`.

glibc makes each of these calls one system call. The page was written to a moment ago.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import ClassVar

from vuproc.devices.vsock_table import Table

NOTHING, SENDING, RECEIVING, DIRECT = range(4)
"""What `moving` says."""
PIECES_MOST = 2
"""A ring of bytes is in two at most."""

_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
"""Of each call. A number, for there is one for each packet, and flags of an enum are made anew."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_: ClassVar = [("base", ctypes.c_uint64), ("length", ctypes.c_uint64)]
    base: int
    length: int


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_: ClassVar = [
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("pieces", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("unused", ctypes.c_int),  # the end of struct msghdr
        ("length", ctypes.c_uint32),
    ]
    pieces: int
    count: int
    flags: int
    length: int


class Transfer:
    """One transfer at a time, of the connection in a slot of `table`.

    `settle(slot, kind, base, end, count)` says what to store in the connection's record when
    `count` bytes were moved; it is called again by the worker that follows one that died.
    """

    def __init__(
        self, table: Table, settled: Callable[[int, int, int, int, int], dict[str, int]]
    ) -> None:
        self._table = table
        self._settled = settled
        self._message = _Message.from_address(table.message)
        self._pieces = (_Piece * PIECES_MOST)()

    def send(
        self,
        file: int,
        slot: int,
        base: int,
        end: int,
        places: Sequence[tuple[int, int]],
        flags: int = 0,
    ) -> int:
        """Send what lies at some addresses, `base` to `end` of the connection; how many bytes went.

        Raises OSError if none did: BlockingIOError if the other side has to read first.
        """
        return self._move(_sendmmsg, SENDING, file, slot, base, end, places, flags)

    def receive(
        self, file: int, slot: int, base: int, places: Sequence[tuple[int, int]], end: int = 0
    ) -> int:
        """Receive to some addresses, which `base` begins; how many bytes came, 0 at the end.

        Raises OSError if none did: BlockingIOError if there are none yet.
        """
        return self._move(_recvmmsg, RECEIVING, file, slot, base, end, places, 0)

    def settle(self) -> None:
        """Store what came of the transfer under way, if there is one."""
        head = self._table.head
        if head.moving == NOTHING:
            return
        slot = head.slot
        changes = self._settled(slot, head.moving, head.base, head.end, self._message.length)
        self._table.commit((self._table.records[slot], changes), (head, {"moving": NOTHING}))

    def _move(
        self,
        call: Callable[..., int],
        kind: int,
        file: int,
        slot: int,
        base: int,
        end: int,
        places: Sequence[tuple[int, int]],
        flags: int,
    ) -> int:
        for piece, (address, length) in zip(self._pieces, places, strict=False):
            piece.base, piece.length = address, length
        message, head = self._message, self._table.head
        message.pieces = ctypes.addressof(self._pieces)
        message.count = len(places)
        message.flags = message.length = 0
        head.slot, head.base, head.end = slot, base, end
        head.moving = kind
        # SAFETY: the pieces are in the table's areas, or bytes that the caller holds; one message.
        moved = call(file, self._table.message, flags | _FLAGS)
        problem = ctypes.get_errno()
        count = message.length
        self.settle()
        if moved < 0:
            raise OSError(problem or errno.EIO, os.strerror(problem))
        return count


def _sendmmsg(file: int, message: int, flags: int) -> int:
    return int(_libc.sendmmsg(file, ctypes.c_void_p(message), 1, flags))


def _recvmmsg(file: int, message: int, flags: int) -> int:
    return int(_libc.recvmmsg(file, ctypes.c_void_p(message), 1, flags, None))
