"""The one owner of a file descriptor: what it refers to, and that it is closed exactly once."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
import sys
import warnings
from collections.abc import Hashable
from enum import Enum
from typing import Any, Protocol

_ONE = (1).to_bytes(8, sys.byteorder)


class HasFileno(Protocol):
    """Anything with a file descriptor, whoever owns it."""

    def fileno(self) -> int:
        """Its number, borrowed."""


class FdKind(Enum):
    """What a file descriptor refers to, as far as vuproc cares."""

    EVENTFD = "eventfd"
    PIPE = "pipe"
    SOCKET = "socket"
    FILE = "file"
    OTHER = "other"


class Fd:
    """Owns one file descriptor until it is closed or given away with `take`.

    Two owners are never equal. An owner that is forgotten while open closes its descriptor and
    warns: that is a leak in the program, though not in the process.
    """

    __slots__ = ("_file", "_kind", "_number")

    def __init__(self, number: int) -> None:
        """Take over `number`; ValueError if it cannot be a file descriptor."""
        self._number = -1
        self._kind: FdKind | None = None
        self._file: Hashable = None
        if number < 0:
            raise ValueError(f"{number} is no file descriptor")
        self._number = number

    @classmethod
    def gone(cls) -> Fd:
        """One that is closed: it was sent to us, and there was no room for it."""
        fd = cls(0)
        fd._number = -1
        return fd

    def fileno(self) -> int:
        """The descriptor, borrowed: it stays owned here. ValueError if closed."""
        if self._number < 0:
            raise ValueError("closed")
        return self._number

    @property
    def closed(self) -> bool:
        """Whether the descriptor was closed or given away."""
        return self._number < 0

    def close(self) -> None:
        """Close the descriptor; nothing happens if it is closed already.

        Errors of close(2) are ignored: Linux has freed the number whatever it reports.
        """
        number, self._number = self._number, -1
        if number >= 0:
            try:
                os.close(number)
            except OSError:
                pass

    def take(self) -> int:
        """Give the descriptor to the caller, who must close it; this owner counts as closed."""
        number = self.fileno()
        self._number = -1
        return number

    def dup(self) -> Fd:
        """A second owner of the same open file (close-on-exec is set). OSError if none is free."""
        return Fd(fcntl.fcntl(self.fileno(), fcntl.F_DUPFD_CLOEXEC, 0))

    @property
    def kind(self) -> FdKind:
        """What it refers to, asked of the kernel once; an O_PATH descriptor is OTHER."""
        if self._kind is None:
            self._kind = _kind_of(self.fileno())
        return self._kind

    @property
    def file(self) -> Hashable:
        """Equal for descriptors of the same open file, asked of the kernel once.

        Files, pipes and sockets are told by their inode and how they were opened; two openings of
        one file may count as the same, for nothing of ours depends on a file's position.
        """
        if self._file is None:
            self._file = _file_of(self)
        return self._file

    @property
    def size(self) -> int:
        """The file's size in bytes at this moment; a file may shrink at any time after."""
        return os.fstat(self.fileno()).st_size

    @property
    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self._access() in (os.O_RDONLY, os.O_RDWR)

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._access() in (os.O_WRONLY, os.O_RDWR)

    @property
    def paired(self) -> bool:
        """Whether it is a connected socket without a name at either end, as socketpair(2) makes.

        A connection to a listener has one, and a front-end must not hand us its own end of ours: we
        would hold it open, and never see its end.
        """
        if self.kind is not FdKind.SOCKET:
            return False
        with socket.socket(fileno=os.dup(self.fileno())) as sock:
            try:
                return not sock.getsockname() and not sock.getpeername()
            except OSError:
                return False

    def notify(self) -> bool:
        """Write one notification, the eight bytes of an eventfd's 1, if that is possible at once.

        False if it is not: a front-end's descriptor may be saturated, closed at its other end or no
        such thing. It never blocks, and never sets O_NONBLOCK, which both holders would share.
        """
        poller = select.poll()
        poller.register(self.fileno(), select.POLLOUT)
        if not any(event & select.POLLOUT for _, event in poller.poll(0)):
            return False
        try:
            return os.write(self.fileno(), _ONE) == len(_ONE)
        except OSError:
            return False

    def _access(self) -> int | None:
        flags = fcntl.fcntl(self.fileno(), fcntl.F_GETFL)
        return None if flags & os.O_PATH else flags & os.O_ACCMODE

    def __enter__(self) -> Fd:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._number >= 0:
            _warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return "Fd(closed)" if self._number < 0 else f"Fd({self._number})"


def _kind_of(number: int) -> FdKind:
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_PATH:
        return FdKind.OTHER
    mode = os.fstat(number).st_mode
    if stat.S_ISFIFO(mode):
        return FdKind.PIPE
    if stat.S_ISSOCK(mode):
        return FdKind.SOCKET
    # An anonymous inode may look like a regular file; only its link says what it is.
    link = os.readlink(f"/proc/self/fd/{number}")
    if link.startswith("anon_inode:"):
        return FdKind.EVENTFD if link == "anon_inode:[eventfd]" else FdKind.OTHER
    return FdKind.FILE if stat.S_ISREG(mode) else FdKind.OTHER


def _file_of(fd: Fd) -> Hashable:
    if fd.kind is FdKind.EVENTFD:
        # All eventfds share an inode.
        with open(f"/proc/self/fdinfo/{fd.fileno()}", encoding="ascii") as info:
            for line in info:
                if line.startswith("eventfd-id:"):
                    return fd.kind, int(line.split()[1])
    if fd.kind in (FdKind.EVENTFD, FdKind.OTHER):
        return object()  # like no other
    status = os.fstat(fd.fileno())
    return fd.kind, status.st_dev, status.st_ino, fd.readable, fd.writable
