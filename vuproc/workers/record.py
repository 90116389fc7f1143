"""The in-flight records of a session: one memfd with a record a queue, which outlives every worker.

The layout is the specification's (vhost-user, "Inflight I/O tracking"), so that a region of the
front-end takes the same path.
"""

from __future__ import annotations

import fcntl
import os

from vuproc.fd import Fd
from vuproc.shm.inflight import record_bytes

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_records(num_queues: int, queue_size: int) -> tuple[Fd, int]:
    """Zeroed records for queues of `queue_size` entries: the memfd, and its size in bytes.

    Its size is sealed: no one who gets the descriptor can truncate it under a worker.
    """
    size = num_queues * record_bytes(queue_size)
    fd = Fd(os.memfd_create("vuproc-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        # Take the pages now: a worker must not meet a full machine at its first store (F13).
        os.posix_fallocate(fd.fileno(), 0, size)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        fd.close()
        raise
    return fd, size
