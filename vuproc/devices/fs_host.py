"""System calls of a file system's host that Python has no name for."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from vuproc.fd import Fd

OPENAT2 = 437
"""Number of the system call, the same on every architecture. Linux 5.6."""
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08
"""Linux, openat2.h: a path leads over no link, and never above where it begins."""
PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
DIRENT_LEAST = 280
"""Bytes of the largest entry as a rule: 19, a name of 255, filled up to 8."""
DIRENT_MOST = 2048
"""Of the largest of all: some file systems have names of 255 characters."""

_OPEN_HOW = struct.Struct("=QQQ")
_DIRENT = struct.Struct("=QqHB")
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_renameat2 = _libc.renameat2
_fallocate = _libc.fallocate64
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_getdents = _libc.getdents64
_getdents.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_getdents.restype = ctypes.c_ssize_t


class HostEntry(NamedTuple):
    """One entry of a directory: `after` is where those behind it begin, `kind` is DT_*."""

    name: bytes
    ino: int
    after: int
    kind: int


def open_beneath(directory: Fd, path: bytes) -> Fd:
    """What is at `path`, which is relative, for O_PATH alone: no link in it is followed, and
    nothing above the directory is reached, whatever is moved meanwhile. Raises OSError.
    """
    resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
    how = _OPEN_HOW.pack(PATH_FLAGS, 0, resolve)
    number = _syscall(
        ctypes.c_long(OPENAT2),
        ctypes.c_int(directory.fileno()),
        ctypes.c_char_p(path),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
    )
    if number < 0:
        raise _failure()
    return Fd(number)


def open_again(file: Fd, flags: int) -> Fd:
    """The file of an O_PATH descriptor, open for more. Raises OSError."""
    return Fd(os.open(path_of(file), flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK))


def path_of(file: Fd) -> str:
    """A path that leads to what is open, and no further should that be a symlink."""
    return f"/proc/self/fd/{file.fileno()}"


def rename(source: Fd, name: bytes, target: Fd, new_name: bytes, flags: int) -> None:
    """renameat2(2). Raises OSError."""
    if _renameat2(source.fileno(), name, target.fileno(), new_name, flags) < 0:
        raise _failure()


def allocate(file: Fd, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    if _fallocate(file.fileno(), mode, offset, length) < 0:
        raise _failure()


def read_directory(directory: Fd, offset: int, most: int) -> list[HostEntry]:
    """Entries from `offset` on, which is 0 or the `after` of one; at most `most` bytes as the
    kernel has them. Raises OSError.
    """
    number = directory.fileno()
    if os.lseek(number, 0, os.SEEK_CUR) != offset:
        # Not without need: where a file system counts entries, those removed meanwhile count.
        os.lseek(number, offset, os.SEEK_SET)
    buffer = ctypes.create_string_buffer(max(most, DIRENT_LEAST))
    length = _getdents(number, buffer, len(buffer))
    if length < 0 and ctypes.get_errno() == errno.EINVAL:  # the next one is larger than that
        buffer = ctypes.create_string_buffer(DIRENT_MOST)
        length = _getdents(number, buffer, len(buffer))
    if length < 0:
        raise _failure()
    entries, at, data = [], 0, buffer.raw
    while at < length:
        ino, after, size, kind = _DIRENT.unpack_from(data, at)
        name = data[at + _DIRENT.size : at + size].split(b"\0", 1)[0]
        entries.append(HostEntry(name, ino, after, kind))
        at += size
    return entries


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
