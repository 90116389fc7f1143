"""The socket that masters notify: messages with their descriptors, and who has sent them."""

import array
import os
import socket
import struct
from collections.abc import Callable

from .descriptors import close_all

MAX_DATAGRAM = 4096
"""Bytes of a message, systemd's own bound."""
MAX_FDS = 253
"""Descriptors of a message, the kernel's SCM_MAX_FD."""

_FD_SIZE = array.array("i").itemsize
_CREDENTIALS = struct.Struct("3i")
_SPACE = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE) + socket.CMSG_SPACE(_CREDENTIALS.size)


Message = tuple[int, str, list[int]]
"""The process that has sent it, 0 for one of another user; the text; the descriptors, which are the
receiver's.
"""


class Inbox:
    """Receives what is sent to `address`. `say` shows a line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("")  # an abstract name that the kernel chooses
        self.address = "@" + self._socket.getsockname()[1:].decode()
        """As NOTIFY_SOCKET has it."""

    def fileno(self) -> int:
        """Readable while there is something to `receive`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Nothing is received any more."""
        self._socket.close()

    def receive(self) -> Message | None:
        """The next message, None if there is none."""
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    MAX_DATAGRAM, _SPACE, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return None
            sender, numbers = 0, array.array("i")
            for level, kind, block in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers.frombytes(block[: len(block) - len(block) % _FD_SIZE])
                elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    sender, user, _ = _CREDENTIALS.unpack(block[: _CREDENTIALS.size])
                    sender = sender if user == os.getuid() else 0
            if not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                return sender, data.decode(errors="replace"), list(numbers)
            self._say("a message was too long, or there is no room for its descriptors")
            close_all(list(numbers))
