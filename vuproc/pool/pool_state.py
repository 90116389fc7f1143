"""What the workers' pool knows of a session beside the session's own state, for a successor of the
master.
"""

from __future__ import annotations

from msgspec import Struct

from vuproc.fd import Fd
from vuproc.pool.shmem_table import Known


class PoolState(Struct, frozen=True):
    """What a successor's pool must know.

    `config` are the driver's writes to the configuration space, `kept` the bases of rings that were
    stopped with requests in their record, `records` the memfd of our own in-flight records. `said`
    is the configuration space, if a worker has said what it is. `objects` are those that the device
    shares: the UUID of each, and which of its files it is; `made` those that are files which a
    worker has made. `shmem` is what is mapped in shared memory, and what may be.
    """

    config: tuple[tuple[int, bytes], ...] = ()
    kept: tuple[tuple[int, int], ...] = ()
    records: Fd | None = None
    said: bytes | None = None
    objects: tuple[tuple[bytes, str], ...] = ()
    made: tuple[tuple[bytes, Fd], ...] = ()
    shmem: Known = ((), ())

    def fds(self) -> tuple[Fd, ...]:
        """The descriptors in it."""
        made = tuple(file for _, file in self.made)
        return made if self.records is None else (self.records, *made)
