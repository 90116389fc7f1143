"""A connection to a back-end: any message by its name, and its reply, by the message table."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

from vuproc.errors import VuprocError
from vuproc.fd import Fd
from vuproc.spec.vhost_user import (
    FLAG_NEED_REPLY,
    FRONT_END,
    PAYLOAD_MAX,
    U64,
    VERSION,
    MessageSpec,
    ProtocolFeature,
)
from vuproc.testing.channel import REPLY_TIMEOUT, receive_from, wait_readable
from vuproc.testing.errors import NoReply, Refused
from vuproc.vhost_user.wire import Message, Receiver, encode, send

_TIMEVAL = struct.Struct("@ll")


class Connection:
    """A socket to a back-end, by the path where it listens, or one that is connected, which is
    owned from then on.
    """

    def __init__(self, path: str | os.PathLike[str] | socket.socket, timeout_s: float) -> None:
        self.socket = path if isinstance(path, socket.socket) else connect(path)
        self.timeout_s = timeout_s
        self.protocol_features = ProtocolFeature(0)
        """Protocol features set with SET_PROTOCOL_FEATURES."""
        self._receiver = Receiver(self.socket, timeout_s, replies=True)
        self._lock = threading.RLock()

    def request(
        self,
        name: str,
        fds: Sequence[Fd] = (),
        *,
        payload: bytes | None = None,
        need_reply: bool | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Send message `name` and take its reply, if one is due; returns the reply's fields.

        The payload is built from `fields` by the message table unless `payload` gives it.
        need_reply: set NEED_REPLY; default: if REPLY_ACK is negotiated. The fds stay the caller's.
        Raises Refused (a non-zero ack), NoReply, and Disconnected or ConnectionBroken if the
        back-end closes.
        """
        row = FRONT_END.named(name)
        if need_reply is None:
            need_reply = ProtocolFeature.REPLY_ACK in self.protocol_features
        body = row.payload.encode(**fields) if payload is None else payload
        flags = VERSION | (FLAG_NEED_REPLY if need_reply else 0)
        with self._lock:
            return self._exchange(row, encode(row.number, body, flags=flags), fds, need_reply)

    def _exchange(
        self, row: MessageSpec, data: bytes, fds: Sequence[Fd], need_reply: bool
    ) -> dict[str, Any]:
        """One message and its reply. An IOMMU has messages of its own, from another thread."""
        name = row.name
        self.send(data, fds)
        acked = need_reply and ProtocolFeature.REPLY_ACK in self.protocol_features
        replies = row.replies(self.protocol_features)
        if not replies and not acked:
            return {}
        answer = self.receive(name)
        try:
            if answer.request != row.number:
                raise VuprocError(f"{name} was answered by {answer.name}")
            if not replies:
                code = U64.unpack(answer.payload)["value"]
                if code:
                    raise Refused(name, code)
                return {}
            return row.reply_payload.decode(answer.payload)
        finally:
            answer.close()

    def send(self, data: bytes, fds: Sequence[Fd] = ()) -> None:
        """Send raw bytes, the fds with the first of them. Raises Disconnected."""
        send(self.socket, data, fds, deadline=self.timeout_s)

    def receive(self, what: str = "a message") -> Message:
        """The next reply. Raises NoReply naming `what`, Disconnected, ConnectionBroken."""
        message = receive_from(self.socket, self._receiver, self.timeout_s)
        if message is None:
            raise NoReply(what, self.timeout_s)
        return message

    def closed_by_peer(self, timeout_s: float | None = None) -> bool:
        """Wait until the back-end closes the connection; False if it does not. Drops replies."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        while wait_readable(self.socket, deadline):
            try:
                if not self.socket.recv(PAYLOAD_MAX, socket.MSG_DONTWAIT):
                    return True
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return True
        return False

    def close(self) -> None:
        """Close it, without a word, as a VMM that dies."""
        self._receiver.close()
        self.socket.close()


def connect(path: str | os.PathLike[str]) -> socket.socket:
    """A stream socket connected to `path`. OSError if nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A full backlog makes connect wait, which this bounds. A non-blocking one would fail.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(REPLY_TIMEOUT), 0))
        sock.connect(os.fspath(path))
    except BaseException:
        sock.close()
        raise
    return sock
