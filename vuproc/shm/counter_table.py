"""The table of a queue's counters: one row a word of its block in shared memory.

A new one is a row here and a field of `Block` (counters.pxd): the snapshot, the status, the metrics
and the manual follow.
"""

# No `from __future__ import annotations`: the annotations are the table, and read at the import.

from typing import Annotated, NamedTuple, get_args

NS = 1e-9
"""Seconds of a word's unit, where that is a nanosecond."""


class Word(NamedTuple):
    """Which of a block's 64-bit words it is, and what it says.

    `counter`: it only ever grows while the device is served, and is shown in the status. `metric`:
    the family of metrics that it is a sample of, without the prefix, with `kind` as its label if
    there is one; "" for none. `scale` makes base units of it.
    """

    place: int
    help: str
    counter: bool = True
    metric: str = ""
    kind: str = ""
    scale: float = 1


class CountersSnapshot(NamedTuple):
    """The values of one queue's block; each is read atomically, they are not read together."""

    requests: Annotated[int, Word(0, "requests completed", metric="requests")]
    bytes_read: Annotated[
        int, Word(1, "bytes that the device has read from the driver", metric="read_bytes")
    ]
    bytes_written: Annotated[
        int,
        Word(2, "bytes that it has written: the sum of used lengths", metric="written_bytes"),
    ]
    errors: Annotated[
        int, Word(3, "requests that failed in the device's code", metric="errors", kind="device")
    ]
    kicks: Annotated[int, Word(4, "times that the driver has woken the worker", metric="kicks")]
    calls: Annotated[int, Word(5, "notifications sent to the driver", metric="calls")]
    call_errors: Annotated[
        int, Word(6, "notifications that could not be sent", metric="errors", kind="call")
    ]
    heartbeat: Annotated[int, Word(7, "advances with each request, and each `beat`", False)]
    busy: Annotated[int, Word(41, "0, or 1 + the head of the request in the device's code", False)]
    hooks: Annotated[
        int, Word(44, "odd inside a hook of the device; each begin and end advances it", False)
    ]
    latency_total_ns: Annotated[int, Word(40, "nanoseconds from fetch to completion, in all")]
    dropped: Annotated[
        int, Word(54, "what the device had to throw away, such as frames", metric="dropped")
    ]
    skipped: Annotated[
        int,
        Word(
            55,
            "requests that are not run again, for they cost workers or must not",
            metric="errors",
            kind="skipped",
        ),
    ]
    restarts: Annotated[int, Word(56, "workers that were lost", metric="worker_restarts")]
    stalls: Annotated[int, Word(57, "lost workers in whose place another serves")]
    stall_total_ns: Annotated[
        int, Word(58, "nanoseconds from the loss of a worker to that, in all")
    ]
    stall_last_ns: Annotated[
        int,
        Word(
            59,
            "nanoseconds of the last of these stalls",
            False,
            metric="recovery_last_stall_seconds",
            scale=NS,
        ),
    ]
    breaks: Annotated[
        int, Word(60, "times that the ring broke", metric="errors", kind="ring_broken")
    ]
    latency: tuple[int, ...]
    """latency[i]: requests that took 2**i <= ns < 2**(i+1); the first and last take the rest."""

    def percentile(self, fraction: float) -> int:
        """Upper bound in ns of the bucket that holds this fraction (0..1) of all; 0: none."""
        return percentile(self.latency, fraction)

    def counters(self) -> dict[str, int]:
        """The values that only ever grow, by name."""
        return {name: getattr(self, name) for name, word in WORDS.items() if word.counter}


def percentile(latency: tuple[int, ...] | list[int], fraction: float) -> int:
    """As `CountersSnapshot.percentile`, of buckets."""
    total = sum(latency)
    reached = 0
    for bucket, count in enumerate(latency):
        reached += count
        if count and reached >= fraction * total:
            return 1 << (bucket + 1)
    return 0


WORDS: dict[str, Word] = {
    name: get_args(kind)[1]
    for name, kind in CountersSnapshot.__annotations__.items()
    if get_args(kind)[1:] and isinstance(get_args(kind)[1], Word)
}
"""Each row by the name of its value, in the snapshot's order."""
