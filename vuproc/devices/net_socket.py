"""Frames to and from another program, by a Unix socket."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time

from vuproc.devices.net_backend import Backend
from vuproc.fd import Fd
from vuproc.spec.net import MAX_FRAME

LENGTH_BYTES = 4
"""Before each frame of a stream: its length, the most significant byte first."""
RETRY_S = 1.0
"""So long is a program left alone that is not there."""
MOST_WAITING = 1 << 20
"""Bytes that may wait for a reader of a stream; what comes on top is dropped."""
READ_BYTES = 256 << 10


class Datagram(Backend):
    """A frame a datagram, as QEMU's `-netdev dgram` has it. `file` is ours, at a path."""

    def __init__(self, file: Fd, peer: str) -> None:
        self._socket = socket.socket(fileno=os.dup(file.fileno()))
        self._peer = peer

    def send(self, frame: bytes) -> bool:
        """Send it, if somebody is there with room for it."""
        with contextlib.suppress(OSError):
            return self._socket.sendto(frame, self._peer) == len(frame)
        return False

    def receive(self) -> bytes | None:
        """The next datagram; what is too long for a frame is none."""
        while True:
            try:
                frame = self._socket.recv(MAX_FRAME + 1)
            except OSError:
                return None
            if 0 < len(frame) <= MAX_FRAME:
                return frame

    def fileno(self) -> int:
        """The socket's."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this worker's descriptor."""
        self._socket.close()


class Stream(Backend):
    """Frames with their lengths, as QEMU's `-netdev stream` and passt have them.

    We connect, and do it again after a while if nobody is there, with the next frame that is sent.
    A worker that follows one which died connects anew, since a frame may be there in part.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._tried_at = -RETRY_S
        self._come = bytearray()
        self._going = bytearray()
        # One number for whoever watches it, whatever becomes of the connection.
        self._poll = select.epoll()
        self._connect()

    def send(self, frame: bytes) -> bool:
        """Send it whole; False if nobody is there, or too much waits already."""
        if not self._connect() or len(self._going) > MOST_WAITING:
            return False
        self._going += len(frame).to_bytes(LENGTH_BYTES, "big") + frame
        self._flush()
        return self._socket is not None

    def receive(self) -> bytes | None:
        """The next frame that has come whole."""
        self._flush()
        while (frame := self._whole()) is None:
            if self._socket is None:
                return None
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                return None
            except OSError:
                data = b""
            if not data:
                self._disconnect()
                return None
            self._come += data
        return frame

    def _whole(self) -> bytes | None:
        while len(self._come) >= LENGTH_BYTES:
            length = int.from_bytes(self._come[:LENGTH_BYTES], "big")
            if not 0 < length <= MAX_FRAME:
                self._disconnect()  # there is no telling where the next one begins
                return None
            end = LENGTH_BYTES + length
            if len(self._come) < end:
                return None
            frame = bytes(self._come[LENGTH_BYTES:end])
            del self._come[:end]
            return frame
        return None

    def _flush(self) -> None:
        while self._going and self._socket is not None:
            try:
                del self._going[: self._socket.send(self._going)]
            except BlockingIOError:
                break
            except OSError:
                self._disconnect()
        if self._socket is not None:
            more = select.EPOLLOUT if self._going else 0
            self._poll.modify(self._socket, select.EPOLLIN | more)

    def _connect(self) -> bool:
        if self._socket is None and time.monotonic() >= self._tried_at + RETRY_S:
            self._tried_at = time.monotonic()
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                made.connect(self._path)
            except OSError:
                made.close()
                return False
            self._socket = made
            self._poll.register(made, select.EPOLLIN)
        return self._socket is not None

    def _disconnect(self) -> None:
        self._come.clear()
        self._going.clear()
        if self._socket is not None:
            self._poll.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def fileno(self) -> int:
        """Readable when frames come, and when some that wait may go."""
        return self._poll.fileno()

    def close(self) -> None:
        """Hang up."""
        self._disconnect()
        self._poll.close()
