"""The userfaultfd of a worker in a migration by postcopy, and what it speaks of."""

from __future__ import annotations

import errno

from vuproc.fd import Fd
from vuproc.shm.memory import GuestMemory
from vuproc.shm.userfault import open_userfault, register, unregister

REMEDY = (
    "run vuproc as root, give it /dev/userfaultfd, or set the sysctl vm.unprivileged_userfaultfd"
)


class Userfault:
    """Tells the front-end, which has a copy of it, of the pages that guest memory lacks.

    Raises OSError with a remedy if the kernel gives none.
    """

    def __init__(self) -> None:
        try:
            self.fd = Fd(open_userfault())
        except OSError as error:
            advice = f"; {REMEDY}" if error.errno in (errno.EPERM, errno.EACCES) else ""
            raise OSError(error.errno, f"postcopy: {error.strerror}{advice}") from error
        self._guarded: list[GuestMemory] = []

    def guard(self, memory: GuestMemory) -> None:
        """Tell of what this table lacks, and of nothing else. Raises OSError.

        A table from before is forgotten: it goes with its last view.
        """
        try:
            register(self.fd.fileno(), memory)
        except OSError:
            unregister(self.fd.fileno(), memory)
            raise
        self._guarded = [memory]

    def close(self) -> None:
        """Whoever waits for a page goes on, though others may have copies of the descriptor."""
        for memory in self._guarded:
            unregister(self.fd.fileno(), memory)
        self._guarded.clear()
        self.fd.close()
