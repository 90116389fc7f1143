"""The control channel between the master and a worker: messages with their descriptors.

One datagram of an AF_UNIX SOCK_SEQPACKET socketpair is one msgspec message (msgpack, tagged by
type), or `_SEVERAL` and an array of them. Where a message has an `Fd`, its number among the
datagram's descriptors stands in the bytes. Nobody trusts the other's lengths: a datagram that is
too long, has what is not a known message, or does not name each of its descriptors once, is a
`ChannelError`, and its sender is replaced.
"""

from __future__ import annotations

import array
import errno
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from vuproc import texts
from vuproc.errors import VuprocError
from vuproc.fd import Fd

MAX_DATAGRAM = 64 * 1024
"""Bytes of the largest message; a memory table of 253 regions needs about 16 KiB."""
MAX_FDS = 253
"""Descriptors in one datagram, the kernel's SCM_MAX_FD."""
TOGETHER_MOST = 32
"""Messages in one datagram."""
SEND_DEADLINE = 1.0
"""Seconds a sender waits for room in the peer's queue before it calls the peer stuck."""
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
"""What sendmsg(2) says if the peer has closed its end."""
_TRUNCATED, _FDS_MISSING = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)
"""As numbers: with a member of an enum, `&` makes another one each time."""
_FD_SIZE = array.array("i").itemsize
_SEVERAL = b"\xc1"
"""A byte with which nothing begins in msgpack."""
_Together = Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=TOGETHER_MOST)]

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
        self._named: list[Fd] = []
        self._short = False
        """Some of the descriptors found no room here."""
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._number_of)
        self._decoder = msgspec.msgpack.Decoder(receives, dec_hook=self._numbered)
        self._parts = msgspec.msgpack.Decoder(_Together)
        self._unread: deque[tuple[In, tuple[Fd, ...]]] = deque()
        """What has come together with the message received last."""

    def fileno(self) -> int:
        """The socket's descriptor, for a poll set."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close this end; idempotent."""
        while self._unread:
            _close_all(self._unread.popleft()[1])
        self._sock.close()

    @property
    def has_unread(self) -> bool:
        """Whether there is another message that no poll tells of: it came together with one that
        was received.
        """
        return bool(self._unread)

    def send(self, *messages: Out, timeout: float = SEND_DEADLINE) -> None:
        """Send messages in one datagram, one to `TOGETHER_MOST`, with copies of the descriptors in
        them.

        Raises `ChannelClosed` if the peer has gone, `TooLarge`, and `ChannelError` if it took
        nothing for `timeout` seconds.
        """
        self._sent = []
        data = (
            self._encoder.encode(messages[0])
            if len(messages) == 1
            else _SEVERAL + self._encoder.encode(messages)
        )
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
        """The next message and the descriptors in it, or None if there is none yet.

        The descriptors are the caller's. Of a message whose class says `goes_without_fds` those
        that found no room are closed. Raises `ChannelClosed` at the end of the stream and
        `ChannelError` for a datagram that is not a message, or lacks a descriptor.
        """
        if self._unread:
            return self._unread.popleft()
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
            if flags & _TRUNCATED:
                raise ChannelError("datagram too long")
            self._short = bool(flags & _FDS_MISSING)
            if not data:
                raise ChannelClosed("closed by the peer")
            self._unread.extend(self._decoded(data, fds))
            return self._unread.popleft()
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

    def _decoded(self, data: bytes, fds: Sequence[Fd]) -> list[tuple[In, tuple[Fd, ...]]]:
        self._came = dict(enumerate(fds))
        messages: list[tuple[In, tuple[Fd, ...]]] = []
        several = data.startswith(_SEVERAL)
        parts = self._parts.decode(memoryview(data)[1:]) if several else (data,)
        for part in parts:
            self._named = []
            message: In = self._decoder.decode(part)
            if self._short and not getattr(message, "goes_without_fds", False):
                raise ChannelError("its descriptors found no room")
            messages.append((message, tuple(self._named)))
        if self._came:
            raise ChannelError(f"{len(self._came)} descriptors came that no message names")
        return messages

    def _number_of(self, value: object) -> int:
        if not isinstance(value, Fd):
            raise NotImplementedError(f"no bytes for a {type(value).__name__}")
        self._sent.append(value)
        return len(self._sent) - 1

    def _numbered(self, kind: type, value: Any) -> Any:
        if kind is not Fd or type(value) is not int:
            raise ValueError(f"{value!r} is no descriptor")
        if self._short and value not in self._came:
            return Fd.gone()
        if value not in self._came:
            raise ValueError(f"{value!r} is no descriptor of this datagram, or was named before")
        self._named.append(self._came.pop(value))
        return self._named[-1]


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[Fd, ...]:
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return tuple(Fd(number) for number in numbers)


def _close_all(fds: Sequence[Fd]) -> None:
    for fd in fds:
        fd.close()
