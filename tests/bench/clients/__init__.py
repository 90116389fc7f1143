"""What drives a disk, and what it found: the interface of all clients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from tests.bench.backends import Running
from tests.bench.work import Case
from vuproc.testing.job import bucket_limit_ns


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: requests, the time of all of them together, latencies (0.0: not measured)."""

    completed: int
    failed: int
    seconds: float
    p50_ns: float = 0.0
    p99_ns: float = 0.0


class Connection(Protocol):
    """A client with all its queues ready."""

    def run(self, count: int) -> Outcome:
        """Make `count` requests on each queue."""
        ...

    def pids(self) -> list[int]:
        """The client's processes other than this one."""
        ...


class Client(Protocol):
    """One program that drives a disk."""

    name: str
    protocols: tuple[str, ...]

    def connect(self, running: Running, case: Case) -> AbstractContextManager[Connection]:
        """Raises Missing if it cannot be had, or refuses the case."""
        ...


def percentile_ns(latency: Sequence[int], percent: float) -> float:
    """What `percent` of the requests took at most, by a histogram with the buckets of `Stats`."""
    wanted = sum(latency) * percent / 100
    seen = 0
    for bucket, count in enumerate(latency):
        seen += count
        if count and seen >= wanted:
            return bucket_limit_ns(bucket)
    return 0.0
