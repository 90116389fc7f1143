"""Looks at a message before it takes it out of the socket's queue.

What was looked at and not taken, the kernel counts beyond our death (SO_PEEK_OFF): a successor can
tell whether the message was taken. An emulator of system calls may not count (qemu-user 7.2): there
every message is taken as the parts of one are, and who dies in the middle of one loses the session.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from msgspec.structs import replace

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
        self._looks = True

    def start(self) -> None:
        """Begin to look, from the first byte that was not taken: before the first `receive`."""
        self._looks = _count_looks(self._socket)

    def receive(self) -> Message | None:
        """The next message, or None if it is not complete yet; raises what Receiver raises.

        A message that is not `taken` has no descriptors yet, and `take` must be called next.
        """
        if not self._parts:
            message, anything = self._look() if self._looks else (None, self._is_readable())
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
        return replace(message, fds=taken.fds)

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

    def _is_readable(self) -> bool:
        """Whether there is a byte, an end or an error to be taken."""
        try:
            self._socket.recv(1, _FLAGS)
        except BlockingIOError:
            return False
        except OSError:
            pass  # the same
        return True


def _count_looks(sock: socket.socket) -> bool:
    """Have the kernel count what is looked at and not taken; False if it does not."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF) == 0
    except OSError:
        return False


def looks_are_counted() -> bool:
    """Whether the kernel has SO_PEEK_OFF for Unix sockets. Raises OSError if there are none."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return _count_looks(ours)


def untaken(sock: socket.socket) -> int:
    """Bytes in the queue that were looked at and not taken, by whomever."""
    try:
        return max(0, sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF))
    except OSError:
        return 0  # nobody has looked: messages are taken at once


def was_read(sock: socket.socket) -> bool:
    """Whether a PeekingReceiver, of whomever, was ever started on the socket; True, too, where that
    cannot be known.
    """
    try:
        counted = sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF) >= 0
    except OSError:
        return True
    # qemu-user reads the option, and cannot set it.
    return counted or not looks_are_counted()


def drop(sock: socket.socket, count: int) -> None:
    """Take `count` bytes that are in the queue, and close the descriptors that come with them."""
    while count > 0:
        count -= len(sock.recv(count, socket.MSG_DONTWAIT)) or count
