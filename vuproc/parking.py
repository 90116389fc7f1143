"""Descriptors that outlive the process that opened them: they wait in a socket that many have.

A worker that accepts a connection is the only one to have it, and it would end with the worker.
Sent through a pair of sockets and never received, the kernel keeps it; whoever has the pair looks
at it as often as it likes, and gets another descriptor of the same open file each time.

Nothing can be taken from the middle of such a row: what is to stay is sent to the end, and taken
from the front only then. Who dies in between leaves it there twice, and never not at all.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import closing

from vuproc.fd import Fd, HasFileno

SO_PEEK_OFF = 42
"""Linux, asm-generic/socket.h: where the next look begins, in bytes."""
_INT = struct.Struct("i")
_LOOK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_KEY = b"P"


def lot(room: int | None = None) -> tuple[Fd, Fd]:
    """The two ends of a place for descriptors, for `Device.shared_files`: where they are put, and
    where they are looked at. `room`: bytes asked for, some 770 a descriptor, and as the system
    allows; it has 270 of them without. Raises OSError.
    """
    put, look = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if room is not None:
        put.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    return Fd(put.detach()), Fd(look.detach())


class ParkedFiles:
    """The files between two ends, in a row, each with a key of `key_bytes` bytes.

    One process at a time: where a look begins is kept by the socket, which all have.
    """

    def __init__(self, put: HasFileno, look: HasFileno, key_bytes: int) -> None:
        self._put = socket.socket(fileno=os.dup(put.fileno()))
        self._look = socket.socket(fileno=os.dup(look.fileno()))
        self._key_bytes = key_bytes

    def close(self) -> None:
        """Close our copies of the ends, not what is parked."""
        self._put.close()
        self._look.close()

    def put(self, key: bytes, file: HasFileno) -> None:
        """Keep a copy, at the end. Raises OSError if there is no room, or the kernel keeps as many
        for this user as RLIMIT_NOFILE allows.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(file.fileno()))]
        self._put.sendmsg([key], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def kept(self) -> list[bytes]:
        """The keys of all that are there, the oldest first."""
        self._look.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        keys = []
        try:
            while True:
                keys.append(self._look.recv(self._key_bytes, _LOOK))
        except BlockingIOError:
            return keys

    def at(self, place: int) -> Fd:
        """Another descriptor of the file at a place of `kept`. OSError EMFILE if this process has
        too many.
        """
        self._look.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, place * self._key_bytes)
        # Not socket.recv_fds, which takes no notice of its flags (Python 3.11).
        _, control, _, _ = self._look.recvmsg(
            self._key_bytes, socket.CMSG_SPACE(_INT.size), _LOOK | socket.MSG_CMSG_CLOEXEC
        )
        if not control:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # there was no number for it
        return Fd(_INT.unpack_from(control[0][2])[0])

    def drop_first(self) -> None:
        """Keep the oldest no more. Raises BlockingIOError if there is none."""
        self._look.recv(self._key_bytes, socket.MSG_DONTWAIT)


class Parking:
    """A place for one file, whose ends these are; they stay the caller's."""

    def __init__(self, put: HasFileno, look: HasFileno) -> None:
        self._ends = put, look

    def park(self, file: HasFileno) -> None:
        """Keep a file, which is the caller's still. Raises RuntimeError if there is one already."""
        with closing(self._files()) as files:
            if files.kept():
                raise RuntimeError("there is one already")
            files.put(_KEY, file)

    def parked(self) -> Fd | None:
        """A descriptor of the file that is kept, or None. Raises OSError if there is none to be
        had.
        """
        with closing(self._files()) as files:
            return files.at(0) if files.kept() else None

    def clear(self) -> None:
        """Keep it no more. Nothing happens if there is none."""
        with closing(self._files()) as files:
            for _ in files.kept():
                files.drop_first()

    def _files(self) -> ParkedFiles:
        return ParkedFiles(*self._ends, len(_KEY))
