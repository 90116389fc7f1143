"""The control channel between the master and a worker: one message with its descriptors at a time.

One datagram of an AF_UNIX SOCK_SEQPACKET socketpair is one msgspec message (msgpack, tagged by
type). Where a message has an `Fd`, its number among the datagram's descriptors stands in the bytes.
Nobody trusts the other's lengths: a datagram that is too long, is not a known message, or does not
name each of its descriptors once, is a `ChannelError`, and its sender is replaced.
"""

from __future__ import annotations

import array
import errno
import select
import socket
import time
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from vuproc import texts
from vuproc.errors import VuprocError
from vuproc.fd import Fd

MAX_DATAGRAM = 64 * 1024
"""Bytes of the largest message; a memory table of 253 regions needs about 16 KiB."""
MAX_FDS = 253
"""Descriptors in one datagram, the kernel's SCM_MAX_FD."""
SEND_DEADLINE = 1.0
"""Seconds a sender waits for room in the peer's queue before it calls the peer stuck."""
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
"""What sendmsg(2) says if the peer has closed its end."""
_FD_SIZE = array.array("i").itemsize

Out = TypeVar("Out")
In = TypeVar("In")


class ChannelError(VuprocError):
    """The peer broke the channel's rules, or does not read it; the peer is to be replaced."""


class TooLarge(ChannelError):
    """The message does not fit into a datagram; nothing was sent."""


class ChannelClosed(ChannelError):
    """The peer closed its end: it has ended or is about to."""


class Channel(Generic[Out, In]):
    """One end of a control channel: sends `Out`, receives `In`.

    The socket is ours alone, which is why it may be non-blocking.
    """

    def __init__(self, sock: socket.socket, receives: object) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._sent: list[Fd] = []
        self._came: dict[int, Fd] = {}
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._number_of)
        self._decoder = msgspec.msgpack.Decoder(receives, dec_hook=self._numbered)

    def fileno(self) -> int:
        """The socket's descriptor, for a poll set."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close this end; idempotent."""
        self._sock.close()

    def send(self, message: Out, *, timeout: float = SEND_DEADLINE) -> None:
        """Send one message, with copies of the descriptors in it.

        Raises `ChannelClosed` if the peer has gone and `ChannelError` if it took nothing for
        `timeout` seconds.
        """
        self._sent = []
        data = self._encoder.encode(message)
        numbers = array.array("i", [fd.fileno() for fd in self._sent])
        if len(data) > MAX_DATAGRAM or len(numbers) > MAX_FDS:
            raise TooLarge(f"message of {len(data)} bytes and {len(numbers)} fds is too large")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                if not self.wait(deadline - time.monotonic(), select.POLLOUT):
                    raise ChannelError(f"peer read nothing for {texts.seconds(timeout)}") from None
            except OSError as error:
                kind = ChannelClosed if error.errno in _GONE else ChannelError
                raise kind(f"cannot send: {error.strerror}") from error

    def receive(self) -> tuple[In, tuple[Fd, ...]] | None:
        """The next message and all descriptors in it, or None if there is none yet.

        The descriptors are the caller's. Raises `ChannelClosed` at the end of the stream and
        `ChannelError` for a datagram that is not a message.
        """
        space = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                MAX_DATAGRAM, space, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosed(f"cannot receive: {error.strerror}") from error
        fds = _descriptors(ancillary)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ChannelError("datagram too long, or its descriptors found no room")
            if not data:
                raise ChannelClosed("closed by the peer")
            return self._decoded(data, fds), fds
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            # msgspec leaves text that is not UTF-8, and nesting without end, to Python's errors.
            _close_all(fds)
            raise ChannelError(f"not a message: {texts.described(error)}") from error
        except ChannelError:
            _close_all(fds)
            raise

    def wait(self, timeout: float | None, events: int = select.POLLIN) -> bool:
        """Wait up to `timeout` seconds (None: for ever) until the channel is ready for `events`."""
        poller = select.poll()
        poller.register(self._sock, events)
        return bool(poller.poll(None if timeout is None else max(0.0, timeout) * 1000))

    def _decoded(self, data: bytes, fds: Sequence[Fd]) -> In:
        self._came = dict(enumerate(fds))
        message: In = self._decoder.decode(data)
        if self._came:
            raise ChannelError(f"{len(self._came)} descriptors came that the message does not name")
        return message

    def _number_of(self, value: object) -> int:
        if not isinstance(value, Fd):
            raise NotImplementedError(f"no bytes for a {type(value).__name__}")
        self._sent.append(value)
        return len(self._sent) - 1

    def _numbered(self, kind: type, value: Any) -> Any:
        if kind is not Fd or type(value) is not int or value not in self._came:
            raise ValueError(f"{value!r} is no descriptor of this datagram, or was named before")
        return self._came.pop(value)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[Fd, ...]:
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return tuple(Fd(number) for number in numbers)


def _close_all(fds: Sequence[Fd]) -> None:
    for fd in fds:
        fd.close()
