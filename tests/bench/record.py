"""What the in-flight record costs a request: `python -m tests.bench.record`.

Rings with a record and rings without one take turns in one process, 32 requests at a time; the
driver's part is not measured. CPU time, so that other processes disturb it little.
"""

from __future__ import annotations

import argparse
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
    """One ring, its driver, and what a request took in each round, in ns."""

    def __init__(self, recorded: bool, image: int) -> None:
        self.image = image
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
            counters=QueueCounters(bytearray(block_bytes(1)), 0),
            record=record,
            fresh=recorded,
        )

    def null(self, request: Request) -> None:
        """A device that does nothing."""

    def read(self, request: Request) -> None:
        """A block device that reads 4 KiB."""
        request.read(16)
        request.preadv(self.image, 0, BLOCK)
        request.put(-1, b"\0")

    def run(self, handler: Handler, requests: int, depth: int) -> None:
        """Serve so many requests."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--lanes", type=int, default=4, help="rings of each kind")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=10000, help="of a round")
    options = parser.parse_args(arguments)
    costs = measure(options.depth, options.lanes, options.rounds, options.requests)
    for name, cost in costs.items():
        print(cost.line(name, options.depth))
    return 0


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one device: the least ns a request without and with the record, and the median ratio of so
    many pairs of runs.
    """

    without_ns: float
    with_ns: float
    ratio: float
    pairs: int

    def line(self, name: str, depth: int) -> str:
        """It as text."""
        return (
            f"{name} device, depth {depth}: {self.without_ns:.0f} ns a request without a record, "
            f"{self.with_ns:.0f} with (the best of all); {self.ratio - 1:+.1%} in the median of "
            f"{self.pairs} pairs"
        )


def measure(
    depth: int = 32, lanes: int = 4, rounds: int = 20, requests: int = 10000
) -> dict[str, Cost]:
    """What the record costs the null device and the one that reads, with `lanes` rings of each kind
    in turn.
    """
    image = os.memfd_create("image", os.MFD_CLOEXEC)
    try:
        os.ftruncate(image, BLOCK)
        found = {}
        for name in ("null", "read"):
            every = [Lane(bool(i % 2), image) for i in range(2 * lanes)]
            for _ in range(rounds):
                for lane in every:
                    lane.run(getattr(lane, name), requests, depth)
            found[name] = _cost(every)
        return found
    finally:
        os.close(image)


def _unexpected(request: Request, error: BaseException) -> None:
    raise error


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


if __name__ == "__main__":
    raise SystemExit(main())
