from typing import Final, final

from typing_extensions import Buffer

from vuproc.shm.counter_table import CountersSnapshot
from vuproc.shm.segment import Segment

BLOCK_SIZE: Final[int]
BUCKETS: Final[int]

def block_bytes(queues: int) -> int:
    """Bytes of buffer that the blocks of `queues` queues take."""

@final
class QueueCounters:
    """One queue's block in a shared buffer: each word has one writer, the queue's worker or, for
    some, the master; any process may read it.
    """

    queue: int
    def __init__(self, buffer: Buffer | Segment, queue: int) -> None:
        """Use block `queue` of a segment, or of a writable buffer aligned to 8 bytes.

        Raises ValueError if the buffer has no such block or is not aligned.
        """

    def trace(self, buffer: Buffer) -> None:
        """Have rings that are made from now on note each request in this memory, whose layout is
        that of vuproc.shm.trace_layout: it has room for a power of two of them.

        Once. Raises ValueError if it is not of such a size, or not aligned to 8 bytes.
        """

    def count_kick(self) -> None:
        """Count one wake-up by the driver."""

    def count_error(self) -> None:
        """Count one failed request. A ring counts what `handle` raises by itself."""

    def count_dropped(self, count: int) -> None:
        """The device has thrown away so many of what it was to pass on."""

    def count_restart(self) -> None:
        """The queue has lost a worker. The master's, as the next two."""

    def count_stall(self, nanoseconds: int) -> None:
        """Another worker serves it, so long after the loss was noticed."""

    def count_break(self) -> None:
        """Its ring has broken."""

    def add_counts(self, other: QueueCounters) -> None:
        """Add what another block has counted, of what only ever grows."""

    def beat(self) -> None:
        """Advance the heartbeat word."""

    def count_hook(self) -> None:
        """A hook of the device begins, or ends."""

    def leave_hooks(self) -> None:
        """A worker takes over, perhaps from one that died inside a hook."""

    def hooks(self) -> int:
        """The word that `count_hook` advances, as in the snapshot."""

    def set_awake(self, awake: bool) -> None:
        """Say whether the worker sleeps."""

    @property
    def command_pending(self) -> bool:
        """Whether the master has sent a command since `note_commands`."""

    def count_command(self) -> None:
        """The master has sent the queue's worker a command, and says so after that."""

    def note_commands(self) -> None:
        """The worker is about to look for commands. A ring that serves requests stops, with more to
        do, after the one during which another is counted.
        """

    def note_command(self) -> None:
        """It has found one, and there may be another: the ring is to stop after one request."""

    def advance(self) -> None:
        """The master looks once more: what io_uring is given from now on is younger than what it
        has.
        """

    def handed_since(self, looks: int) -> int:
        """How many requests io_uring has had since so many looks (1 to 7) of the master, or more.

        What it was given between two looks counts from the second.
        """

    def hand_none(self) -> None:
        """io_uring has nothing of this worker's: before there is one."""

    def count_awake(self) -> int:
        """The number of queues, of all in the buffer, whose workers do not sleep."""

    def clear(self) -> None:
        """Set the whole block to zero."""

    def requests(self) -> int:
        """How many were completed, as in the snapshot; a death is no time to read all of it."""

    def busy(self) -> int:
        """Which request is in the device's code, as in the snapshot."""

    def work(self) -> tuple[int, int, int]:
        """What the snapshot calls busy, heartbeat and hooks: whether a worker gets on."""

    def snapshot(self) -> CountersSnapshot:
        """Read the block."""

    def release(self) -> None:
        """Give the buffer back; the counters count into nowhere from then on."""
