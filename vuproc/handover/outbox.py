"""The answer on its way, in a pipe: its bytes leave the pipe as they reach the socket.

A sender that dies around its send leaves the question whether it had sent. Here the kernel knows:
splice(2) takes from the pipe exactly what the socket took, and the pipe outlives us.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import termios

from vuproc.errors import ConnectionBroken, Disconnected
from vuproc.fd import Fd

CAPACITY = 65536
"""Bytes that fit (pipe(7)); the largest answer has 12 + 4096."""


class Outbox:
    """At most one answer, or what is left of it. Owns both ends of the pipe."""

    def __init__(self, read_end: Fd, write_end: Fd) -> None:
        """Take over a pipe, empty or as a predecessor left it."""
        self.read_end = read_end
        self.write_end = write_end

    @classmethod
    def create(cls) -> Outbox:
        """An empty one. Raises OSError."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return cls(Fd(read_end), Fd(write_end))

    @property
    def unsent(self) -> int:
        """Bytes that no socket has taken yet. Raises OSError if the read end is no pipe."""
        count = bytearray(4)
        fcntl.ioctl(self.read_end.fileno(), termios.FIONREAD, count)
        return int.from_bytes(count, "little")

    def put(self, answer: bytes) -> None:
        """Lay an answer in; there must be none."""
        if len(answer) > CAPACITY:
            raise ValueError(f"an answer of {len(answer)} bytes")
        if os.write(self.write_end.fileno(), answer) != len(answer):
            raise ValueError("the outbox is not empty")

    def send(self, sock: socket.socket) -> bool:
        """Send what is in here, as far as `sock` takes it now; whether nothing is left.

        `sock` is a stream socket. Never waits. Raises Disconnected if the peer is gone and
        ConnectionBroken if the system refuses.
        """
        poller = select.poll()
        poller.register(sock, select.POLLOUT)
        while left := self.unsent:
            # A socket that polls as writable has room for any answer, so splice does not block
            # even where the socket would.
            if not poller.poll(0):
                return False
            try:
                os.splice(self.read_end.fileno(), sock.fileno(), left, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET):
                    raise Disconnected from error
                raise ConnectionBroken(f"cannot send: {error.strerror}") from error
        return True

    def clear(self) -> None:
        """Drop what is in here: it was laid in for a message that will be applied again."""
        while self.unsent:
            os.read(self.read_end.fileno(), CAPACITY)

    def close(self) -> None:
        """Close both ends. Idempotent."""
        self.read_end.close()
        self.write_end.close()
