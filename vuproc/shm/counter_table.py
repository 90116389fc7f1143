"""The table of a queue's counters: one row a word of its block in shared memory.

A new one is a row here and a field of `Block` (counters.pxd): the snapshot, the status and the
manual follow.
"""

# No `from __future__ import annotations`: the annotations are the table, and read at the import.

from typing import Annotated, NamedTuple, get_args


class Word(NamedTuple):
    """Which of a block's 64-bit words it is, and what it says.

    `counter`: it only ever grows while the device is served, and is shown in the status.
    """

    place: int
    help: str
    counter: bool = True


class CountersSnapshot(NamedTuple):
    """The values of one queue's block; each is read atomically, they are not read together."""

    requests: Annotated[int, Word(0, "requests completed")]
    bytes_read: Annotated[int, Word(1, "bytes that the device has read from the driver")]
    bytes_written: Annotated[int, Word(2, "bytes that it has written: the sum of used lengths")]
    errors: Annotated[int, Word(3, "requests that failed in the device's code")]
    kicks: Annotated[int, Word(4, "times that the driver has woken the worker")]
    calls: Annotated[int, Word(5, "notifications sent to the driver")]
    call_errors: Annotated[int, Word(6, "notifications that could not be sent")]
    heartbeat: Annotated[int, Word(7, "advances with each request, and each `beat`", False)]
    busy: Annotated[int, Word(41, "0, or 1 + the head of the request in the device's code", False)]
    hooks: Annotated[
        int, Word(44, "odd inside a hook of the device; each begin and end advances it", False)
    ]
    latency_total_ns: Annotated[int, Word(40, "nanoseconds from fetch to completion, in all")]
    dropped: Annotated[int, Word(54, "what the device had to throw away, such as frames")]
    latency: tuple[int, ...]
    """latency[i]: requests that took 2**i <= ns < 2**(i+1); the first and last take the rest."""

    def percentile(self, fraction: float) -> int:
        """Upper bound in ns of the bucket that holds this fraction (0..1) of all; 0: none."""
        total = sum(self.latency)
        reached = 0
        for bucket, count in enumerate(self.latency):
            reached += count
            if count and reached >= fraction * total:
                return 1 << (bucket + 1)
        return 0

    def counters(self) -> dict[str, int]:
        """The values that only ever grow, by name."""
        return {name: getattr(self, name) for name, word in WORDS.items() if word.counter}


WORDS: dict[str, Word] = {
    name: get_args(kind)[1]
    for name, kind in CountersSnapshot.__annotations__.items()
    if get_args(kind)[1:] and isinstance(get_args(kind)[1], Word)
}
"""Each row by the name of its value, in the snapshot's order."""
