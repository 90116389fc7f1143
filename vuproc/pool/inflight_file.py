"""The in-flight records of a session: one memfd with a record a queue, which outlives every worker.

The layout is the specification's (vhost-user, "Inflight I/O tracking"), so that a region of the
front-end takes the same path.
"""

from __future__ import annotations

import fcntl
import os
from mmap import PAGESIZE

from vuproc.fd import Fd
from vuproc.spec.inflight import RECORD_ALIGN
from vuproc.vhost_user.effects import Inflight

VERSION_AT = 8
"""Where a record has its version, 16 bits (vhost-user, QueueRegionSplit)."""
SIZE_AT = 10
"""And its number of descriptors, which a ring notes when it begins."""
_EMPTY = bytes(2)
_NOBODYS = bytes(SIZE_AT + 2 - VERSION_AT)
"""A version and a number of descriptors."""
_BLANK = bytes(RECORD_ALIGN)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_records(num_queues: int, record_bytes: int) -> tuple[Fd, int]:
    """Zeroed records of so many bytes each: the memfd, and its size in bytes.

    Its size is sealed: no one who gets the descriptor can truncate it under a worker.
    """
    size = num_queues * record_bytes
    fd = Fd(os.memfd_create("vuproc-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        # Take the pages now: a worker must not meet a full machine at its first store (F13).
        os.posix_fallocate(fd.fileno(), 0, size)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        fd.close()
        raise
    return fd, size


def is_blank(record: Inflight) -> bool:
    """Whether no ring has been on this record since it was made or cleared: then it does not say
    where the next one begins.
    """
    at = record.offset + SIZE_AT
    return os.pread(record.fd.fileno(), len(_EMPTY), at) == _EMPTY


class InflightFile:
    """Our own records of one session, for queues of up to `queue_size` entries. Owns `file`.

    Each has the room that the largest ring layout takes: a session's drivers choose theirs.
    """

    def __init__(self, file: Fd, num_queues: int, queue_size: int) -> None:
        self.file = file
        self._num_queues = num_queues
        self._queue_size = queue_size
        self._stride = file.size // num_queues

    @classmethod
    def create(cls, num_queues: int, queue_size: int, record_bytes: int) -> InflightFile:
        """Empty records. Raises OSError.

        Each in pages of its own: a worker that maps its queue's cannot write those of others.
        """
        file, _ = make_records(num_queues, -(-record_bytes // PAGESIZE) * PAGESIZE)
        return cls(file, num_queues, queue_size)

    def at(self, queue: int) -> Inflight:
        """Where a queue's record is; the file stays ours."""
        return Inflight(self.file, queue * self._stride, self._queue_size)

    def clear(self, queue: int) -> bool:
        """Have the next start of a ring find nothing to recover; whether there was a record.

        That the last ring was stopped in order, and where, stays: of a packed ring at base 0 it
        tells a new one from one that goes on.
        """
        there = not self.is_clear(queue)
        os.pwrite(self.file.fileno(), _NOBODYS, self.at(queue).offset + VERSION_AT)
        return there

    def forget_all(self) -> None:
        """The rings that come next are of another layout: nothing of any record is true of them."""
        for queue in range(self._num_queues):
            os.pwrite(self.file.fileno(), _BLANK, self.at(queue).offset)

    def is_clear(self, queue: int) -> bool:
        """Whether the next start of a ring finds nothing to recover."""
        offset = self.at(queue).offset + VERSION_AT
        return os.pread(self.file.fileno(), len(_EMPTY), offset) == _EMPTY

    def close(self) -> None:
        """Close the file; the workers' mappings stay."""
        self.file.close()
