"""Locks on an image, the same that QEMU takes: two programs that write to it exclude each other.

QEMU (block/file-posix.c, since 2.10) marks what it does with a file by read locks on single bytes
of it: byte 100 + n while it uses permission n, byte 200 + n while it does not let others use it.
Once it has its own, it looks whether another's are in the way. These are locks of the open file
description (fcntl(2), F_OFD_SETLK): they last until its last descriptor is closed, in whatever
process that is, and io_uring has finished with it.
"""

from __future__ import annotations

import errno
import fcntl
import struct
import time
from enum import IntEnum

from msgspec import Struct

from vuproc.errors import VuprocError
from vuproc.fd import Fd

USED_BASE = 100
"""Byte of permission 0 in use (RAW_LOCK_PERM_BASE)."""
DENIED_BASE = 200
"""Byte of permission 0 denied to others (RAW_LOCK_SHARED_BASE)."""
LOOK_S = 0.05
"""Pause between two attempts: nothing announces the end of a lock that is not ours."""

_UNAVAILABLE = frozenset({errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""What kernels and file systems without such locks say."""
_HELD = frozenset({errno.EACCES, errno.EAGAIN})


class Permission(IntEnum):
    """QEMU's BLK_PERM_*, by the number of the bit: those that a disk has to do with."""

    READ = 0
    WRITE = 1


class Claim(Struct, frozen=True):
    """What is done with an image, and what others must not do meanwhile."""

    uses: tuple[Permission, ...]
    denies: tuple[Permission, ...]


READER = Claim(uses=(Permission.READ,), denies=(Permission.WRITE,))
"""As QEMU's disk with readonly=on: further readers are welcome."""
WRITER = Claim(uses=(Permission.READ, Permission.WRITE), denies=(Permission.WRITE,))
"""As QEMU's disk: one writer, and readers that can live with one."""


class ImageLocked(VuprocError):
    """Another program's locks are in the way; `reason` says what it does with the image."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LocksUnavailable(VuprocError):
    """There are no such locks for this file; `reason` is what the kernel said."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def lock(fd: Fd, claim: Claim, *, keep: bool = False) -> None:
    """Take the locks of a claim, which adds nothing if they are held already. `fd` is readable.

    Raises ImageLocked, and then none are held, or (`keep`) all of them beside another's;
    LocksUnavailable; OSError.
    """
    try:
        for byte in _bytes(claim):
            _fcntl(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)
        check(fd, claim)
    except ImageLocked:
        if not keep:
            unlock(fd)
        raise


def lock_within(fd: Fd, claim: Claim, patience_s: float) -> None:
    """As `lock`, and again for `patience_s` seconds while another's locks are in the way."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            lock(fd, claim)
            return
        except ImageLocked:
            if time.monotonic() >= deadline:
                raise
        time.sleep(LOOK_S)


def check(fd: Fd, claim: Claim) -> None:
    """Look whether a claim could be made, and take nothing. Raises as `lock`."""
    for permission in claim.uses:
        if _held_by_others(fd, DENIED_BASE + permission):
            use = "write to it" if permission is Permission.WRITE else "read it"
            raise ImageLocked(f"another program has it open and lets nobody else {use}")
    for permission in claim.denies:
        if _held_by_others(fd, USED_BASE + permission):
            raise ImageLocked("another program has it open for writing")


def unlock(fd: Fd) -> None:
    """Give back all locks that this open file holds, if any; for a file without locks as well."""
    try:
        _fcntl(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, USED_BASE, DENIED_BASE)
    except (LocksUnavailable, OSError):
        pass  # then there are none


def _bytes(claim: Claim) -> list[int]:
    used = [USED_BASE + permission for permission in claim.uses]
    return used + [DENIED_BASE + permission for permission in claim.denies]


def _held_by_others(fd: Fd, byte: int) -> bool:
    """Whether another open file has a lock of any kind on that byte."""
    return _fcntl(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK


def _fcntl(fd: Fd, command: int, kind: int, start: int, length: int = 1) -> int:
    """One F_OFD_ command; the kind of lock that comes back."""
    request = FLOCK.pack(kind, 0, start, length, 0)
    try:
        answer = fcntl.fcntl(fd.fileno(), command, request)
    except OSError as error:
        if error.errno in _HELD:
            raise ImageLocked("another program has locked it") from error
        if error.errno in _UNAVAILABLE:
            raise LocksUnavailable((error.strerror or str(error)).lower()) from error
        raise
    return int(FLOCK.unpack(answer)[0])


FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of the 64-bit kernels: type, whence (SEEK_SET), start, length, pid (0 for these)."""
