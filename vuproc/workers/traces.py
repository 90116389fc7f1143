"""Where a worker's rings note their requests: a part of one file a queue."""

from __future__ import annotations

import mmap

from vuproc.fd import Fd


class WorkerTraces:
    """The traces of all queues in `file`, of so many bytes each. Raises OSError, ValueError."""

    def __init__(self, file: Fd, bytes_each: int) -> None:
        self._memory = memoryview(mmap.mmap(file.fileno(), file.size))
        self._bytes_each = bytes_each

    def of(self, queue: int) -> memoryview:
        """One queue's. Raises ValueError if there is none."""
        begin, end = queue * self._bytes_each, (queue + 1) * self._bytes_each
        if end > len(self._memory):
            raise ValueError(f"no trace of queue {queue}")
        return self._memory[begin:end]
