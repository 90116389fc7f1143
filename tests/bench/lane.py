"""Rings and their drivers in one process, of two kinds that take turns; CPU time a request.

The driver's part is not measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from vuproc.shm.counters import QueueCounters, block_bytes
from vuproc.shm.inflight import SplitRecord, record_bytes
from vuproc.shm.memory import GuestMemory
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing
from vuproc.shm.trace_layout import trace_bytes
from vuproc.spec.virtio import Feature
from vuproc.testing.split_ring import SplitDriverRing, split_layout

SIZE = 256
MEMORY = 1 << 24
USER = 1 << 32
BLOCK = 4096
HEADERS, STATUSES, BLOCKS = 0x100000, 0x180000, 0x200000
"""Where the buffers lie: a page or a block a request."""

Handler = Callable[[Request], None]


class Lane:
    """One ring and its driver, and what a request took in each round, in ns.

    `recorded`: it has an in-flight record. `traced`: of so many requests there is a trace.
    """

    def __init__(self, *, recorded: bool = False, traced: int = 0) -> None:
        self.times: list[float] = []
        fd = os.memfd_create("bench", os.MFD_CLOEXEC)
        log = os.memfd_create("record", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, MEMORY)
            os.ftruncate(log, record_bytes(SIZE))
            memory = GuestMemory().with_region(0, MEMORY, USER, 0, fd)
            record = SplitRecord(log, 0, SIZE) if recorded else None
        finally:
            os.close(fd)
            os.close(log)
        counters = QueueCounters(bytearray(block_bytes(1)), 0)
        if traced:
            counters.trace(bytearray(trace_bytes(traced)))
        desc, avail, used, _ = split_layout(SIZE)
        self.driver = SplitDriverRing(
            memory.view(0, MEMORY), SIZE, desc=desc, avail=avail, used=used, event_idx=True
        )
        self.ring = SplitRing(
            0,
            SIZE,
            memory,
            USER + desc,
            USER + avail,
            USER + used,
            0,
            features=Feature.INDIRECT_DESC | Feature.EVENT_IDX,
            chain_limit=SIZE,
            counters=counters,
            record=record,
            fresh=recorded,
        )

    def run(self, handler: Handler, requests: int, depth: int) -> None:
        """Serve so many requests, some at a time."""
        spent = 0
        for _ in range(requests // depth):
            for slot in range(depth):
                at = BLOCK * slot
                header, data, status = (HEADERS + at, 16), (BLOCKS + at, BLOCK), (STATUSES + at, 1)
                self.driver.add([(*header, False), (*data, True), (*status, True)])
            self.driver.publish()
            before = time.process_time_ns()
            served = self.ring.drain(handler, _unexpected, SIZE)
            spent += time.process_time_ns() - before
            if served != depth or len(self.driver.reap()) != depth:
                raise RuntimeError("the ring lost requests")
        self.times.append(spent / (requests // depth * depth))


def null(_request: Request) -> None:
    """A device that does nothing."""


def _unexpected(_request: Request, error: BaseException) -> None:
    raise error


@dataclass(frozen=True, slots=True)
class Cost:
    """Of what one kind of lane has: the least ns a request without and with it, and the median
    ratio of so many pairs of runs.
    """

    without_ns: float
    with_ns: float
    ratio: float
    pairs: int

    def line(self, what: str, without: str, with_: str) -> str:
        """It as text."""
        return (
            f"{what}: {self.without_ns:.0f} ns a request {without}, {self.with_ns:.0f} {with_} "
            f"(the best of all); {self.ratio - 1:+.1%} in the median of {self.pairs} pairs"
        )


def cost(
    make: Callable[[bool], Lane],
    handler: Handler,
    *,
    lanes: int,
    rounds: int,
    requests: int,
    depth: int,
) -> Cost:
    """Compare `lanes` lanes of each kind, in turn; `make(True)` gives one that has it."""
    every = [make(bool(i % 2)) for i in range(2 * lanes)]
    for _ in range(rounds):
        for lane in every:
            lane.run(handler, requests, depth)
    return _cost(every)


def _cost(lanes: Sequence[Lane]) -> Cost:
    without, with_ = lanes[::2], lanes[1::2]
    # Each round of a ring with the same round of its neighbour, a moment before.
    ratios = [
        after / before
        for left, right in zip(without, with_, strict=True)
        for before, after in zip(left.times, right.times, strict=True)
    ]
    least, more = (min(min(lane.times) for lane in kind) for kind in (without, with_))
    return Cost(least, more, median(ratios), len(ratios))
