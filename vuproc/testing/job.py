"""What the load generator is asked to do and what it found: plain values, no ring in them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

SUB_BUCKETS = 8
"""Histogram buckets to each power of two of nanoseconds."""

SECTOR = 512
"""Bytes of a virtio-blk sector (virtio 1.2, 5.2)."""
PLACE_BYTES = 8
"""Bytes of a place in a PLAIN request's header."""


class Kind(enum.Enum):
    """The form of a request."""

    BLOCK = "block"
    """virtio-blk: a 16-byte header, `block_size` bytes of data, a status byte."""
    PLAIN = "plain"
    """`out_size` readable and `in_size` writable bytes, a segment each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of requests on one queue. All sizes and places are in bytes.

    BLOCK requests lie at whole multiples of `block_size` within [`start`, `start` + `span`);
    `read_percent` of them are reads and the rest writes.

    A PLAIN request's readable part is `header` and then its payload: `payload`, or what `pattern`
    makes of the request's number, or what happens to be there. Its writable part must begin with
    `expect` and, with `echo`, go on with the payload, up to its end. `Stats.corrupt` counts the
    requests where the device wrote something else or, by the used length, less. With `place_at` the
    8 bytes there in its header, little-endian, are a place, chosen as that of a BLOCK request.
    """

    count: int
    """Requests in all."""
    depth: int = 32
    """Requests in flight at once."""
    kind: Kind = Kind.BLOCK
    block_size: int = 4096
    """Data of a BLOCK request: whole sectors of 512."""
    start: int = 0
    span: int = 0
    read_percent: int = 100
    """0 to 100."""
    sequential: bool = False
    """BLOCK: one after the other from `start`, wrapping round; else at random by `seed`."""
    seed: int = 1
    pattern: int | None = None
    """BLOCK: writes carry a content which depends on this number and the place alone, and reads
    check it (what was written before with the same number); None sends what happens to be there
    and checks nothing. PLAIN: payloads that differ from request to request."""
    out_size: int = 16
    """Readable part of a PLAIN request."""
    in_size: int = 1
    """Writable part of a PLAIN request."""
    header: bytes = b""
    """PLAIN: what the readable part begins with."""
    place_at: int | None = None
    """PLAIN: where in `header` the request's place is, for a file system's READ for instance."""
    payload: bytes | None = None
    """PLAIN: what follows `header`, repeated up to `out_size`; at least one byte."""
    expect: bytes = b""
    """PLAIN: what the device must write first."""
    echo: bool = False
    """PLAIN: what the device must write then is the payload, cut where the writable part ends."""
    indirect: bool = True
    """One descriptor a request, pointing to a table (the queue must have INDIRECT_DESC)."""
    poll: bool = False
    """Watch the ring and never sleep; else sleep on the call descriptor."""
    stall_s: float = 30.0
    """Give up after this many seconds without one completion."""

    def __post_init__(self) -> None:
        """Refuse what no queue can run: ValueError."""
        if self.count < 0 or self.depth < 1 or not 0 <= self.read_percent <= 100:
            raise ValueError("count, depth or read_percent out of range")
        if self.kind is Kind.BLOCK:
            self._check_block()
        else:
            self._check_plain()

    def _check_block(self) -> None:
        if self.block_size < SECTOR or self.block_size % SECTOR or self.start % SECTOR:
            raise ValueError(f"blocks of {self.block_size} bytes are not whole sectors")
        self._check_span()
        if self.header or self.payload is not None or self.expect or self.echo:
            raise ValueError("header, payload, expect and echo are for PLAIN requests")
        if self.place_at is not None:
            raise ValueError("place_at is for PLAIN requests")

    def _check_span(self) -> None:
        if self.block_size < 1 or self.span < self.block_size:
            raise ValueError(f"a span of {self.span} bytes holds no block")

    def _check_plain(self) -> None:
        if self.out_size < 0 or self.in_size < 0 or self.out_size + self.in_size == 0:
            raise ValueError("a request needs at least one byte")
        room, answer = self.out_size - len(self.header), self.in_size - len(self.expect)
        if room < 0 or answer < 0:
            raise ValueError("header longer than out_size, or expect longer than in_size")
        if self.place_at is not None:
            self._check_span()
            if not 0 <= self.place_at <= len(self.header) - PLACE_BYTES:
                raise ValueError("the place is not within the header")
        if self.payload is not None and (not self.payload or self.pattern is not None):
            raise ValueError("a payload has at least one byte, and there is no pattern beside it")
        if self.echo and self.payload is None and self.pattern is None:
            raise ValueError("an echo can be checked of a payload or a pattern")
        if self.echo and answer > room:
            raise ValueError(f"an echo of {answer} bytes of a payload of {room}")

    @property
    def slot_data(self) -> int:
        """Bytes of data area each request in flight needs."""
        size = self.block_size if self.kind is Kind.BLOCK else self.out_size + self.in_size
        return (size + 63) & ~63

    @property
    def arena_size(self) -> int:
        """Bytes of guest memory the run needs: data, then header, status and table of each slot."""
        return self.depth * (self.slot_data + 128)

    @property
    def readable(self) -> bytes:
        """What the readable parts of all PLAIN requests begin with: all that is not a pattern."""
        return self.header + self._payload(self.out_size - len(self.header))

    @property
    def expected(self) -> bytes:
        """What the writable parts of all PLAIN requests must begin with, patterns apart."""
        return self.expect + (self._payload(self.checked - len(self.expect)) if self.echo else b"")

    @property
    def checked(self) -> int:
        """Bytes of each PLAIN request's writable part which the device must write."""
        return self.in_size if self.echo else len(self.expect)

    def _payload(self, size: int) -> bytes:
        if self.payload is None:
            return b""
        return (self.payload * (size // len(self.payload) + 1))[:size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a run measured."""

    completed: int
    """Requests that came back, whatever their outcome."""
    failed: int
    """Requests whose status byte was not 0 (BLOCK)."""
    corrupt: int
    """Reads that did not hold the pattern (BLOCK), answers that were not as expected (PLAIN)."""
    seconds: float
    """From the first request to the last completion."""
    kicks: int
    """Times the device was notified."""
    calls: int
    """Wake-ups by the call descriptor."""
    bytes_read: int
    """Data of the reads that succeeded (BLOCK), all writable bytes (PLAIN)."""
    bytes_written: int
    """Data of the writes that succeeded (BLOCK), all readable bytes (PLAIN)."""
    latency: tuple[int, ...] = field(repr=False)
    """Requests by the time they took: one number a histogram bucket, see `bucket_limit_ns`."""

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
