from collections.abc import Iterable, Sequence
from typing import final

from typing_extensions import Buffer

from vuproc.fd import HasFileno
from vuproc.shm.counters import QueueCounters

@final
class Uring:
    """Transfers by io_uring: begun without a system call, submitted together, taken back later.

    For one thread of one process. The kernel reads and writes the buffers until `collect` gives the
    transfer's tag back; they are kept until then. Native callers have the same without objects
    (transfers.pxd).
    """

    def __init__(self, entries: int, files: Sequence[int | HasFileno]) -> None:
        """Make a ring for `entries` (1 to 32768) transfers at a time between 1 to 4 open files.

        The files are known by their index from then on, and stay open as long as the kernel works
        on them, whatever becomes of the descriptors. Raises `UringUnavailable` where the kernel, a
        container or a seccomp filter has no io_uring to give; Linux 5.6 is the oldest that will do.
        """

    def count_in(self, counters: QueueCounters) -> None:
        """Count there what is in flight, by its age; before the first transfer, else ValueError.

        The counters must not be released before the ring is closed.
        """

    @property
    def entries(self) -> int:
        """Most transfers at a time: what was asked for, up to a power of two."""

    @property
    def in_flight(self) -> int:
        """Transfers begun and not collected yet."""

    @property
    def pending(self) -> bool:
        """True if the kernel has not taken all that was begun: submit before sleeping."""

    def fileno(self) -> int:
        """The ring's descriptor: readable while there is something to collect."""

    def read(
        self, file: int, buffers: Iterable[Buffer], offset: int, tag: int, *, flags: int = 0
    ) -> None:
        """Begin to fill the buffers from the file at `offset`; `flags` are RWF_*.

        OSError if `entries` are in flight (EBUSY) or there is no such file (EINVAL).
        """

    def write(
        self, file: int, buffers: Iterable[Buffer], offset: int, tag: int, *, flags: int = 0
    ) -> None:
        """Begin to write the buffers to the file at `offset`; os.RWF_DSYNC: durably."""

    def sync(self, file: int, tag: int) -> None:
        """Begin to bring what was written before to stable storage, as fdatasync does."""

    def submit_all(self) -> None:
        """Tell the kernel of all that was begun: one system call for up to 256 transfers."""

    def collect(self, *, wait: bool = False) -> list[tuple[int, int, int]]:
        """Take back up to 64 transfers that are over: (tag, bytes moved, errno or 0) of each.

        Fewer bytes than asked for without an error mean the end of the file: a transfer that the
        kernel ends early is gone on with. `wait` submits and sleeps until there is one.
        """

    def close(self) -> None:
        """End what is in flight, wait for it, and let go of the ring. Idempotent.

        Waits as long as a blocking call would: nothing touches the buffers afterwards.
        """
