"""Tells when the kernel has finished what a dead worker had asked of it.

A worker that dies in the middle of blocking calls is gone only when they are over. What it has
given to io_uring outlives it: after its pidfd has become readable, reads may still arrive in guest
memory and writes in the image. Running such a request again meanwhile would be a race: the driver
could have its answer, use the buffer or the block anew, and then lose what it wrote to the earlier
attempt.

The kernel lets go of a ring's registered files only when nothing of the ring is left. So a worker
registers one more file, the *uring_lock*: the in-flight record, opened once more and with a lock on
the queue's part of it. Whoever goes on from the record waits until nobody holds such a lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from vuproc.fd import Fd

PATIENCE_S = 1.5
"""Seconds to wait for the kernel within one command: less than the master waits for its answer."""
LOOK_S = 0.0005
"""Seconds between two looks."""

# struct flock: type, whence, start, length, pid; the locks belong to the open file (fcntl(2)).
_FLOCK = struct.Struct("=hh4xqqi4x")


class StillBusy(Exception):
    """The kernel works on requests of a dead worker still, after `PATIENCE_S`."""


def hold(record: Fd, offset: int, length: int) -> Fd:
    """The uring_lock of a queue whose record is `length` bytes at `offset`: to be registered.

    Raises OSError where the record cannot be opened again, or locked.
    """
    uring_lock = Fd(os.open(f"/proc/self/fd/{record.fileno()}", os.O_RDWR | os.O_CLOEXEC))
    try:
        # A shared lock: the ring before this one, idle and not gone yet, may hold one as well.
        lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, offset, length, 0)
        fcntl.fcntl(uring_lock.fileno(), fcntl.F_OFD_SETLK, lock)
    except OSError:
        uring_lock.close()
        raise
    return uring_lock


def is_held(record: Fd, offset: int, length: int) -> bool:
    """Whether the kernel has an io_uring of an earlier worker of this queue."""
    lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0)
    try:
        found = fcntl.fcntl(record.fileno(), fcntl.F_OFD_GETLK, lock)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):
            return False  # a file without locks: `hold` was not to be had either
        raise
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def wait(record: Fd, offset: int, length: int) -> None:
    """Return once the kernel has finished. Raises `StillBusy`."""
    deadline = time.monotonic() + PATIENCE_S
    while is_held(record, offset, length):
        if time.monotonic() >= deadline:
            raise StillBusy("the kernel is at work still for a worker that died")
        time.sleep(LOOK_S)
