"""Bytes and file descriptors on a stream socket <-> one vhost-user message.

The same codec serves both directions: the master receives requests on the main socket and replies
on the back-end channel, a front-end the other way round.
"""

from __future__ import annotations

import array
import errno
import resource
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from vuproc.errors import ConnectionBroken, Disconnected, FramingError, MessageRefused
from vuproc.fd import Fd
from vuproc.spec.layout import Buffer, LayoutError
from vuproc.spec.vhost_user import (
    FDS_MAX,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    FLAGS_KNOWN,
    FRONT_END,
    HEADER,
    PAYLOAD_MAX,
    REPLY_FLAGS,
    VERSION,
    VERSION_MASK,
    MessageSpec,
    MessageTable,
)

MESSAGE_DEADLINE = 5.0
"""Seconds from a message's first byte to its last; a peer that stalls longer is cut off."""

SEND_DEADLINE = 5.0
"""Seconds in which the peer must take what we send."""

NOT_TAKEN = "the peer did not take a message within {:g} s"
"""What is said of one that did not; takes the seconds."""

_FD_SIZE = array.array("i").itemsize
# Room for two full blocks: the kernel merges them, but nothing here relies on that.
_ANCILLARY_SIZE = 2 * socket.CMSG_SPACE(FDS_MAX * _FD_SIZE)
_RECEIVE_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_FDS_MISSING = int(socket.MSG_CTRUNC)


class Message(Struct, frozen=True, eq=False):
    """One message as it came: numbers, bytes, and the file descriptors it owns.

    Whoever takes a descriptor out of `fds` and keeps it must not call `close` afterwards.
    """

    request: int
    flags: int = VERSION
    payload: bytes = b""
    fds: tuple[Fd, ...] = ()
    table: MessageTable = FRONT_END

    @property
    def spec(self) -> MessageSpec | None:
        """The message's row in its table, None for an unknown number."""
        return self.table.get(self.request)

    @property
    def name(self) -> str:
        """A name for the log, whatever the number."""
        return self.table.name_of(self.request)

    @property
    def need_reply(self) -> bool:
        """Whether the sender asks for an acknowledgement."""
        return bool(self.flags & FLAG_NEED_REPLY)

    @property
    def is_reply(self) -> bool:
        """Whether this answers a request."""
        return bool(self.flags & FLAG_REPLY)

    def fields(self) -> dict[str, Any]:
        """The payload's fields by name, as the message's row lays them out.

        Raises MessageRefused on an unknown number or a length that is not allowed.
        """
        row = self.spec
        if row is None:
            raise MessageRefused("unknown message number")
        try:
            return (row.reply_payload if self.is_reply else row.payload).decode(self.payload)
        except LayoutError as error:
            raise MessageRefused(str(error)) from None

    def close(self) -> None:
        """Close every descriptor that came with the message."""
        for fd in self.fds:
            fd.close()


def encode(request: int, payload: bytes = b"", *, flags: int = VERSION) -> bytes:
    """The bytes of a message: header and payload."""
    return HEADER.pack(request=request, flags=flags, size=len(payload)) + payload


def reply(message: Message, payload: bytes) -> bytes:
    """The bytes of the answer to `message`; its flags are 0x5 exactly, NEED_REPLY never repeats."""
    return encode(message.request, payload, flags=REPLY_FLAGS)


class Receiver:
    """Takes messages from a stream socket as their bytes come, without ever blocking.

    The header is read alone, so that descriptors of the next message cannot come with this one.
    `replies` says which kind the peer sends here: a request where replies are due, or a reply where
    requests are, breaks the framing. The socket is borrowed; its blocking mode does not matter.
    """

    def __init__(
        self,
        sock: socket.socket,
        deadline_s: float = MESSAGE_DEADLINE,
        *,
        table: MessageTable = FRONT_END,
        replies: bool = False,
    ) -> None:
        self._socket = sock
        self._deadline_s = deadline_s
        self._table = table
        self._replies = replies
        self._bytes = bytearray()
        self._wanted = HEADER.size
        self._fds: list[Fd] = []
        self._since: float | None = None

    @property
    def partial_since(self) -> float | None:
        """When the first byte of an unfinished message came (time.monotonic), None if none did."""
        return self._since

    @property
    def deadline(self) -> float | None:
        """When an unfinished message must be complete (time.monotonic), None if there is none.

        The caller wakes up by then and calls `receive`, which raises if the rest has not come.
        """
        return None if self._since is None else self._since + self._deadline_s

    def receive(self) -> Message | None:
        """The next message, or None if it is not complete yet.

        Raises Disconnected if the peer is gone between two messages, FramingError if it broke the
        framing and ConnectionBroken if the connection ended or stalled inside a message. After any
        of them every descriptor that came is closed and the receiver must not be used again.
        """
        try:
            return self._receive()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Forget an unfinished message and close its descriptors."""
        for fd in self._fds:
            fd.close()
        self._fds.clear()
        self._restart()

    def _receive(self) -> Message | None:
        while True:
            if not self._read():
                if self._since is not None and time.monotonic() >= self._since + self._deadline_s:
                    raise ConnectionBroken(
                        f"a message was not complete after {self._deadline_s:g} s"
                    )
                return None
            if len(self._bytes) < self._wanted:
                continue
            if len(self._bytes) == HEADER.size:
                self._wanted += self._payload_size(self._bytes)
                if self._wanted > HEADER.size:
                    continue
            return self._finish()

    def _read(self) -> bool:
        """Read some of the missing bytes; False if none are there."""
        missing = self._wanted - len(self._bytes)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                missing, _ANCILLARY_SIZE, _RECEIVE_FLAGS
            )
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionResetError as error:
            # The peer went away without reading all that was sent to it.
            raise self._end_of_stream() from error
        except OSError as error:
            raise ConnectionBroken(f"cannot receive: {error.strerror}") from error
        self._collect(ancillary)
        if flags & _FDS_MISSING:
            raise FramingError(f"some file descriptors of a message were lost{_why(self._fds)}")
        if len(self._fds) > FDS_MAX:
            raise FramingError(f"more than {FDS_MAX} file descriptors came with one message")
        if not data:
            raise self._end_of_stream()
        if self._since is None:
            self._since = time.monotonic()
        self._bytes += data
        return True

    def _end_of_stream(self) -> Exception:
        if not self._bytes:
            return Disconnected()
        return ConnectionBroken(
            f"the peer closed the connection after {len(self._bytes)} of {self._wanted} bytes"
        )

    def _collect(self, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        """Become the owner of every descriptor in every control block."""
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % _FD_SIZE])
                self._fds.extend(Fd(number) for number in numbers)

    def _payload_size(self, data: bytes | bytearray) -> int:
        """Check the header; the number of bytes that follow it."""
        header = HEADER.unpack(data)
        name, flags, size = self._table.name_of(header["request"]), header["flags"], header["size"]
        if flags & VERSION_MASK != VERSION:
            raise FramingError(f"{name}: version {flags & VERSION_MASK}, not {VERSION}")
        if flags & ~FLAGS_KNOWN:
            raise FramingError(f"{name}: reserved bits in flags {flags:#x}")
        if bool(flags & FLAG_REPLY) != self._replies:
            kind = "a request" if self._replies else "a reply"
            raise FramingError(f"{name}: {kind} where none is due")
        if size > PAYLOAD_MAX:
            raise FramingError(f"{name}: payload of {size} bytes, at most {PAYLOAD_MAX} allowed")
        return int(size)

    def _finish(self) -> Message:
        header = HEADER.unpack(self._bytes)
        message = Message(
            header["request"],
            header["flags"],
            bytes(self._bytes[HEADER.size :]),
            tuple(self._fds),
            self._table,
        )
        self._fds.clear()
        self._restart()
        return message

    def _restart(self) -> None:
        self._bytes.clear()
        self._wanted = HEADER.size
        self._since = None


def _why(fds: Sequence[Fd]) -> str:
    """What is known of why the kernel has kept back descriptors, when these have come."""
    if len(fds) > FDS_MAX:
        return ""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f": {limit} open files are allowed, and all are in use"


def send_some(sock: socket.socket, data: Buffer, fds: Sequence[Fd] = ()) -> int:
    """Send as much of `data` as the socket takes now, the descriptors with its first byte; they
    stay owned by the caller. How many bytes that were; 0: it is full.

    Raises Disconnected if the peer is gone and ConnectionBroken if the system refuses.
    """
    rights = array.array("i", [fd.fileno() for fd in fds])
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
    try:
        return sock.sendmsg([data], ancillary, _SEND_FLAGS)
    except (BlockingIOError, InterruptedError):
        return 0
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            raise Disconnected from error
        raise ConnectionBroken(f"cannot send: {error.strerror}") from error


def send(
    sock: socket.socket,
    data: bytes,
    fds: Sequence[Fd] = (),
    *,
    deadline: float = SEND_DEADLINE,
) -> None:
    """Send all of `data`, the descriptors with its first byte; they stay owned by the caller.

    Raises Disconnected if the peer is gone and ConnectionBroken if it does not take the bytes
    within `deadline` seconds or the system refuses. The socket's blocking mode does not matter.
    """
    end = time.monotonic() + deadline
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    view = memoryview(data)
    while view:
        sent = send_some(sock, view, fds)
        if sent:
            view, fds = view[sent:], ()
            continue
        left = end - time.monotonic()
        if left <= 0:
            raise ConnectionBroken(NOT_TAKEN.format(deadline))
        poller.poll(left * 1000)
