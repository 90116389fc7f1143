"""The traces of a device's queues: one file in memory, which outlives workers and masters."""

from __future__ import annotations

import mmap
import os

from vuproc.fd import Fd
from vuproc.handover.fd_store import TRACE, FdStore
from vuproc.shm.trace_layout import Traced, read_trace, trace_bytes


class TraceFile:
    """Owns the file of `queues` traces with room for at least `requests` each, none if that is 0.

    That of a predecessor is gone on with if it is of the same size.
    """

    def __init__(self, queues: int, requests: int, fd_store: FdStore) -> None:
        self._queues = queues
        self._fd_store = fd_store
        self.file: Fd | None = None
        self._memory: mmap.mmap | None = None
        self._requests = -1
        self._left = fd_store.take(TRACE)
        self.resize(requests)

    def resize(self, requests: int) -> None:
        """Have another file, of which those know that get it from now on; none for 0 requests.

        Raises OSError.
        """
        if requests == self._requests:
            return
        self._requests = requests
        self._drop()
        self._fd_store.drop(TRACE)
        left, self._left = self._left, None
        size = self._queues * self.stride
        if size and left is not None and left.size == size:
            self.file, left = left, None
        if left is not None:
            self._fd_store.discard(TRACE, left)
        if not size:
            return
        if self.file is None:
            self.file = Fd(os.memfd_create("vuproc-trace", os.MFD_CLOEXEC))
            # Its pages now: a worker must not meet a full machine at a request.
            os.posix_fallocate(self.file.fileno(), 0, size)
        self._memory = mmap.mmap(self.file.fileno(), size, prot=mmap.PROT_READ)
        self._fd_store.keep(TRACE, self.file)

    def read(self, queue: int) -> tuple[int, list[Traced]]:
        """As `read_trace`; (0, []) if nothing is traced."""
        if self._memory is None:
            return 0, []
        with memoryview(self._memory) as memory:
            with memory[queue * self.stride : (queue + 1) * self.stride] as own:
                return read_trace(own)

    @property
    def stride(self) -> int:
        """Bytes of one queue's trace."""
        return trace_bytes(room_for(self._requests)) if self._requests else 0

    def close(self) -> None:
        """Close the file; the workers' mappings stay."""
        self._drop()
        if self._left is not None:
            self._left.close()
            self._left = None

    def _drop(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self.file is not None:
            self.file.close()
            self.file = None


def room_for(requests: int) -> int:
    """The next power of two."""
    return 1 << (requests - 1).bit_length()
