"""What the load generator is asked to do and what it found: plain values, no ring in them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

SUB_BUCKETS = 8
"""Histogram buckets to each power of two of nanoseconds."""

SECTOR = 512
"""Bytes of a virtio-blk sector (virtio 1.2, 5.2)."""


class Kind(enum.Enum):
    """The form of a request."""

    BLOCK = "block"
    """virtio-blk: a 16-byte header, `block_size` bytes of data, a status byte."""
    PLAIN = "plain"
    """`out_size` readable and `in_size` writable bytes with nothing in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of requests on one queue.

    `read_percent` of the BLOCK requests are reads and the rest writes. They lie at whole multiples
    of `block_size` bytes within [`start`, `start` + `span`), at random by `seed` or, `sequential`,
    one after the other from the start, wrapping round. `pattern` makes writes carry a content which
    depends on `pattern` and the place alone, and reads check it (what was written before with the
    same `pattern`); None sends what happens to be there and checks nothing.
    """

    count: int
    depth: int = 32
    kind: Kind = Kind.BLOCK
    block_size: int = 4096
    start: int = 0
    span: int = 0
    read_percent: int = 100
    sequential: bool = False
    seed: int = 1
    pattern: int | None = None
    out_size: int = 16
    in_size: int = 1
    indirect: bool = True
    """One descriptor a request, pointing to a table (the queue must have INDIRECT_DESC)."""
    poll: bool = False
    """Watch used.idx and never sleep; else sleep on the call descriptor."""
    stall_s: float = 30.0
    """Give up after this long without one completion."""

    def __post_init__(self) -> None:
        """Refuse what no queue can run: ValueError."""
        if self.count < 0 or self.depth < 1 or not 0 <= self.read_percent <= 100:
            raise ValueError("count, depth or read_percent out of range")
        if self.kind is Kind.BLOCK:
            if self.block_size < SECTOR or self.block_size % SECTOR or self.start % SECTOR:
                raise ValueError(f"blocks of {self.block_size} bytes are not whole sectors")
            if self.span < self.block_size:
                raise ValueError(f"a span of {self.span} bytes holds no block")
        elif self.out_size < 0 or self.in_size < 0 or self.out_size + self.in_size == 0:
            raise ValueError("a request needs at least one byte")

    @property
    def slot_data(self) -> int:
        """Bytes of data area each request in flight needs."""
        size = self.block_size if self.kind is Kind.BLOCK else self.out_size + self.in_size
        return (size + 63) & ~63

    @property
    def arena_size(self) -> int:
        """Bytes of guest memory the run needs: data, then header, status and table of each slot."""
        return self.depth * (self.slot_data + 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a run measured. `latency` counts requests by `bucket_limit_ns`."""

    completed: int
    failed: int
    """Requests whose status byte was not 0 (BLOCK)."""
    corrupt: int
    """Reads that did not hold the pattern."""
    seconds: float
    kicks: int
    calls: int
    """Wake-ups by the call descriptor."""
    bytes_read: int
    bytes_written: int
    latency: tuple[int, ...] = field(repr=False)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.completed / self.seconds if self.seconds else 0.0

    def percentile_ns(self, percent: float) -> float:
        """Latency below which `percent` of the requests stayed; 0.0 if there were none.

        Upper edge of its histogram bucket: at most an eighth too much.
        """
        wanted = sum(self.latency) * percent / 100
        seen = 0
        for bucket, count in enumerate(self.latency):
            seen += count
            if count and seen >= wanted:
                return bucket_limit_ns(bucket)
        return 0.0


def bucket_limit_ns(bucket: int) -> float:
    """Upper edge of a latency bucket in nanoseconds: eight buckets to a power of two."""
    if bucket < SUB_BUCKETS:
        return float(bucket + 1)
    power, sub = divmod(bucket - SUB_BUCKETS, SUB_BUCKETS)
    return float((SUB_BUCKETS + sub + 1) << power)
