"""Standard error, for one who must not wait for whoever reads it: the keeper's and the master's."""

import errno
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable

LINE_BYTES = select.PIPE_BUF - 1
"""Bytes of the longest line: with its end, a pipe that has room takes it as a whole."""
SAY_LOST_S = 1.0
"""Seconds between two attempts to say that lines were lost."""


class ErrorOutput:
    """Standard error, for one who must not wait for whoever reads it.

    A line for which there is no room is lost and counted; the count is shown once there is room.
    `prefix` is what the line with the count begins with, `number` the descriptor.
    """

    def __init__(self, prefix: str, number: int = 2) -> None:
        self.lost = 0
        self._prefix = prefix
        self._encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        self._rest = b""
        self._say_lost_at = 0.0
        self._socket: socket.socket | None = None
        self._own = -1
        self._write = self._way(number)

    def write(self, text: str) -> None:
        """Show `text`, which may be several lines, each as far as `LINE_BYTES` go."""
        for line in text.encode(self._encoding, "backslashreplace").split(b"\n"):
            if not (self.say_lost() and self._put(line)):
                self.lost += 1
                self._say_lost_at = time.monotonic() + SAY_LOST_S

    def say_lost(self) -> bool:
        """Show how many lines were lost, if some were; whether that is said."""
        if self.lost:
            if not self._put(self.notice().encode(self._encoding, "backslashreplace")):
                self._say_lost_at = time.monotonic() + SAY_LOST_S
                return False
            self.lost = 0
        return True

    def notice(self) -> str:
        """The line that says how many were lost."""
        return f"{self._prefix}lines not shown, as nobody read them: {self.lost}"

    def due(self) -> float | None:
        """Seconds until `say_lost` is worth another try, or None if nothing was lost."""
        return max(0.0, self._say_lost_at - time.monotonic()) if self.lost else None

    def close(self) -> None:
        """Close what was opened for this; the descriptor itself stays."""
        if self._own >= 0:
            os.close(self._own)
        if self._socket is not None:
            self._socket.close()

    def _put(self, line: bytes) -> bool:
        try:
            self._rest = self._rest[self._write(self._rest) :] if self._rest else b""
            if self._rest:
                return False
            data = line[:LINE_BYTES] + b"\n"
            self._rest = data[self._write(data) :]
        except OSError as error:
            # For any other reason nobody can ever read it, and it counts as shown.
            return error.errno not in (errno.EAGAIN, errno.ENOSPC, errno.EDQUOT)
        return True

    def _way(self, number: int) -> Callable[[bytes], int]:
        """How to write without waiting: the descriptor's own flags are those of its other users,
        so O_NONBLOCK must not be set there.
        """
        try:
            mode = os.fstat(number).st_mode
        except OSError:
            return len  # closed: nobody is there to read
        if stat.S_ISSOCK(mode):
            stream = self._socket = socket.socket(fileno=os.dup(number))
            return lambda data: stream.send(data, socket.MSG_DONTWAIT)
        if not (stat.S_ISFIFO(mode) or os.isatty(number)):
            return lambda data: os.write(number, data)
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._own = os.open(f"/proc/self/fd/{number}", flags)
        except OSError:
            return lambda data: _write_if_ready(number, data)
        return lambda data: os.write(self._own, data)


def _write_if_ready(number: int, data: bytes) -> int:
    """As write(2), where the open file cannot be opened anew: another user's. The room that poll
    has seen is enough, unless somebody else takes it in between.
    """
    poller = select.poll()
    poller.register(number, select.POLLOUT)
    if not poller.poll(0):
        raise BlockingIOError(errno.EAGAIN, "no room")
    return os.write(number, data)
