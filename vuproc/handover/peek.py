"""Looks at a message before it takes it out of the socket's queue.

What was looked at and not taken, the kernel counts beyond our death (SO_PEEK_OFF): a successor can
tell whether the message was taken.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable

from vuproc.spec.vhost_user import HEADER
from vuproc.vhost_user.wire import Message, Receiver

_SO_PEEK_OFF = 42  # asm-generic/socket.h
_FLAGS = socket.MSG_PEEK | socket.MSG_DONTWAIT


class PeekingReceiver(Receiver):
    """Receives requests. A message that is whole in the queue is given out before it is taken.

    One that is not whole would make the socket readable for ever if it were left there. Its parts
    are taken as they come, after `on_part` was called.
    """

    def __init__(self, sock: socket.socket, on_part: Callable[[], None]) -> None:
        """`sock` is a stream socket, of which `untaken` bytes have been looked at before."""
        super().__init__(sock)
        self._on_part = on_part
        self._whole = False
        self._parts = False

    def start(self) -> None:
        """Begin to look, from the first byte that was not taken: before the first `receive`."""
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)

    def receive(self) -> Message | None:
        """The next message, or None if it is not complete yet; raises what Receiver raises.

        A message that is not `taken` has no descriptors yet, and `take` must be called next.
        """
        if not self._parts:
            message, anything = self._look()
            self._whole = message is not None
            if message is not None or not anything:
                return message
            self._on_part()
        message = super().receive()
        self._parts = message is None
        return message

    @property
    def taken(self) -> bool:
        """Whether the message that was received last is out of the queue."""
        return not self._whole

    def take(self, message: Message) -> Message:
        """Take the message, which `receive` has given: the same with its descriptors.

        Raises ConnectionBroken, and then its descriptors are closed.
        """
        self._whole = False
        # All of it is there.
        taken = super().receive()
        assert taken is not None
        return dataclasses.replace(message, fds=taken.fds)

    def _look(self) -> tuple[Message | None, bool]:
        """A message that is whole, if there is one; and whether there is anything at all."""
        try:
            head = self._socket.recv(HEADER.size, _FLAGS)
            if len(head) == HEADER.size:
                size = self._payload_size(head)
                payload = self._socket.recv(size, _FLAGS) if size else b""
                if len(payload) == size:
                    fields = HEADER.unpack(head)
                    request, flags = fields["request"], fields["flags"]
                    return Message(request, flags, payload, table=self._table), True
        except BlockingIOError:
            return None, untaken(self._socket) > 0
        except OSError:
            pass  # whoever takes will hear the same
        return None, True


def untaken(sock: socket.socket) -> int:
    """Bytes in the queue that were looked at and not taken, by whomever."""
    return max(0, sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF))


def was_read(sock: socket.socket) -> bool:
    """Whether a PeekingReceiver, of whomever, was ever started on the socket."""
    return sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF) >= 0


def drop(sock: socket.socket, count: int) -> None:
    """Take `count` bytes that are in the queue, and close the descriptors that come with them."""
    while count > 0:
        count -= len(sock.recv(count, socket.MSG_DONTWAIT)) or count
