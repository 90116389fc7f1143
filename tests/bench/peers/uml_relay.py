"""Between User-Mode Linux 6.1 and back-ends that it does not get on with. Only messages go this
way: kicks, calls and all data go past it.

* UML's SET_MEM_TABLE always has room for two regions, whatever their number; the crates of
  rust-vmm refuse one that is longer than its number says. Here the rest is cut off.
* UML gives its rings the interrupt that it has of the channel for a back-end's own requests. With a
  back-end that has none (BACKEND_REQ) that is 0, the timer's, and no driver finds its device
  (`Flags mismatch irq 0`). Here the channel is offered in its place; it is never used.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.bench.backends import Running
from vuproc.spec.vhost_user import (
    FLAG_NEED_REPLY,
    REPLY_FLAGS,
    FrontendRequest,
    ProtocolFeature,
)

HEADER = struct.Struct("<III")
"""vhost-user: request, flags, size of the payload."""
U64 = struct.Struct("<Q")
TABLE, REGION = 8, 32
"""Bytes before the regions of SET_MEM_TABLE, and of each."""
MOST_FDS = 32
END_TIMEOUT_S = 5.0


@contextmanager
def relayed(behind: Running, path: Path) -> Iterator[Running]:
    """`behind`, for one front-end that connects to `path`."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        carrier = threading.Thread(target=_carry, args=(listener, behind.socket))
        carrier.start()
        try:
            yield Running(path, behind.pids)
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            carrier.join(END_TIMEOUT_S)


def _carry(listener: socket.socket, behind: Path) -> None:
    """One connection, until either side ends it."""
    with suppress(OSError, EOFError), socket.socket(socket.AF_UNIX) as back:
        front, _ = listener.accept()
        with front:
            back.connect(str(behind))
            _Relay(front, back).run()


class _Relay:
    """One front-end with one back-end."""

    def __init__(self, front: socket.socket, back: socket.socket) -> None:
        self._front = front
        self._back = back
        self._has_channel = True
        """The back-end makes requests of its own. Known before the front-end sets features."""
        self._channel: list[int] = []
        """Descriptors which the back-end was not told of, open as long as the front-end is."""

    def run(self) -> None:
        """Until either side ends."""
        answers = threading.Thread(target=self._answers)
        answers.start()
        try:
            while True:
                self._message()
        except (OSError, EOFError):
            pass
        finally:
            for end in (self._front, self._back):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            answers.join(END_TIMEOUT_S)
            for fd in self._channel:
                os.close(fd)

    def _message(self) -> None:
        request, flags, payload, fds = _received(self._front)
        if request == FrontendRequest.SET_MEM_TABLE:
            payload = payload[: TABLE + REGION * struct.unpack_from("<I", payload)[0]]
        if request == FrontendRequest.SET_PROTOCOL_FEATURES and not self._has_channel:
            payload = U64.pack(U64.unpack(payload)[0] & ~ProtocolFeature.BACKEND_REQ)
        if request == FrontendRequest.SET_BACKEND_REQ_FD and not self._has_channel:
            self._channel += fds
            if flags & FLAG_NEED_REPLY:
                _send(self._front, request, REPLY_FLAGS, U64.pack(0), [])
        else:
            _send(self._back, request, flags, payload, fds)

    def _answers(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                request, flags, payload, fds = _received(self._back)
                if request == FrontendRequest.GET_PROTOCOL_FEATURES:
                    (offered,) = U64.unpack(payload)
                    self._has_channel = bool(offered & ProtocolFeature.BACKEND_REQ)
                    payload = U64.pack(offered | ProtocolFeature.BACKEND_REQ)
                _send(self._front, request, flags, payload, fds)
        with suppress(OSError):
            self._front.shutdown(socket.SHUT_RDWR)


def _received(source: socket.socket) -> tuple[int, int, bytes, list[int]]:
    """Request, flags, payload and descriptors of the next message. Raises OSError, EOFError."""
    header, fds, _, _ = socket.recv_fds(source, HEADER.size, MOST_FDS)
    try:
        if not header:
            raise EOFError
        request, flags, size = HEADER.unpack(header + _exactly(source, HEADER.size - len(header)))
        return request, flags, _exactly(source, size), fds
    except (OSError, EOFError):
        for fd in fds:
            os.close(fd)
        raise


def _exactly(source: socket.socket, size: int) -> bytes:
    """Raises OSError, EOFError."""
    found = b""
    while len(found) < size:
        part = source.recv(size - len(found))
        if not part:
            raise EOFError
        found += part
    return found


def _send(to: socket.socket, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
    """Raises OSError; the descriptors are closed."""
    data = HEADER.pack(request, flags, len(payload)) + payload
    try:
        sent = socket.send_fds(to, [data], fds)
        to.sendall(data[sent:])
    finally:
        for fd in fds:
            os.close(fd)
