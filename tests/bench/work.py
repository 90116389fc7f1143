"""What a client asks a disk for: the kinds of request, where the data lies, depth and queues."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

QUEUE_SIZE = 512
"""Entries of each queue: enough for 128 requests of three descriptors. As in clients/blkio.c."""
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of request, all of the same size."""

    name: str
    title: str
    block: int
    """Bytes of one request."""
    writes: bool = False
    sequential: bool = False
    sums: bool = False
    """The back-end reckons the CRC-32 of what it read: work for its CPU."""


WORKS = {
    work.name: work
    for work in (
        Work("randread", "4 KiB random read", 4 * KIB),
        Work("randwrite", "4 KiB random write", 4 * KIB, writes=True),
        Work("seqread", "64 KiB sequential read", 64 * KIB, sequential=True),
        Work("seqwrite", "64 KiB sequential write", 64 * KIB, writes=True, sequential=True),
        Work("checksum", "64 KiB random read and its CRC-32", 64 * KIB, sums=True),
    )
}


class Store(Enum):
    """What a disk is kept in."""

    TMPFS = "tmpfs"
    CACHE = "page-cache"
    DIRECT = "direct"
    """A file that is opened with O_DIRECT."""
    NULL = "null"
    """Nothing: requests are completed and no data is moved."""


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison: all sides do this."""

    work: Work
    store: Store = Store.TMPFS
    depth: int = 128
    """Requests in flight on each queue."""
    queues: int = 1
    span: int = 256 * MIB
    """Bytes of the disk."""
    polls: bool = False
    """The client watches the ring and never sleeps."""

    @property
    def name(self) -> str:
        waiting = "-poll" if self.polls else ""
        return f"{self.work.name}-{self.store.value}-d{self.depth}-q{self.queues}{waiting}"

    @property
    def title(self) -> str:
        waiting = "polls" if self.polls else "sleeps"
        return (
            f"{self.work.title}, {self.store.value}, depth {self.depth}, "
            f"{self.queues} queue{'s' if self.queues > 1 else ''}, the client {waiting}"
        )

    @property
    def words(self) -> list[str]:
        """As the programs in clients/ take it."""
        letters = {
            "w": self.work.writes,
            "s": self.work.sequential,
            "p": self.polls,
            "c": self.work.sums,
        }
        chosen = "".join(letter for letter, wanted in letters.items() if wanted)
        numbers = self.work.block, self.span, self.depth, self.queues
        return [*map(str, numbers), chosen or "-"]
