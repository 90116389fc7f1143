"""What is compared: reads without a ring, wake-ups without one, and devices on a ring."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

from tests.bench import quiet
from tests.bench.alone import read_blocks, ring_and_wait
from vuproc.device import Device
from vuproc.fd import Fd
from vuproc.ops.admin import Request, ask
from vuproc.testing.bell import BellKind
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job
from vuproc.testing.memory import Ram
from vuproc.testing.serve import Served, serve

QUEUE_SIZE = 256
WARM_UP = 2000
"""Most requests before the clock starts: memory is touched, files are open."""
STALL_S = 60.0


class Waiting(Enum):
    """Who sleeps when there is nothing to do, and who looks again and again."""

    DRIVER_POLLS = "driver polls, device sleeps"
    BOTH_SLEEP = "both sleep"
    BOTH_POLL = "both poll"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run, a request: ns of time, ns of CPU of the side that does the work, notifications."""

    ns: float
    cpu_ns: float
    kicks: float = 0.0
    calls: float = 0.0
    median_ns: float = 0.0
    """Of the latency."""


class Side(Protocol):
    """Anything that can run a job."""

    name: str

    def run(self, job: Job, waiting: Waiting) -> Sample: ...

    def pids(self) -> list[int]:
        """Processes other than this one that work for it."""
        ...


class Alone:
    """The job's reads in a native loop, into guest memory, with no ring."""

    name = "the work alone: a loop of preadv"

    def __init__(self, image: str) -> None:
        self._file = Fd(os.open(image, os.O_RDONLY | os.O_CLOEXEC))

    def run(self, job: Job, waiting: Waiting) -> Sample:
        with closing(Ram()) as ram:
            arena = ram.allocate(job.arena_size, 4096)
            file, memory = self._file.fileno(), arena.region.buffer
            read_blocks(file, memory, arena=arena.offset, job=_warm_up(job))
            cpu = time.thread_time_ns()
            seconds = read_blocks(file, memory, arena=arena.offset, job=job)
            cpu = time.thread_time_ns() - cpu
        return Sample(seconds * 1e9 / job.count, cpu / job.count)

    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        self._file.close()


class WakeUps:
    """Two eventfds between two processes: what one request at a time costs at the very least."""

    name = "the wake-ups alone: eventfd there and back"

    def __init__(self) -> None:
        self._ours, self._theirs = (Fd(os.eventfd(0, os.EFD_CLOEXEC)) for _ in range(2))
        numbers = (self._ours.fileno(), self._theirs.fileno())
        code = f"from tests.bench.alone import answer; answer({numbers[0]}, {numbers[1]}, 0)"
        self._child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            pass_fds=numbers,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def run(self, job: Job, waiting: Waiting) -> Sample:
        numbers = self._ours.fileno(), self._theirs.fileno()
        ring_and_wait(*numbers, min(job.count, WARM_UP))
        cpu = quiet.times(self._child.pid)
        seconds = ring_and_wait(*numbers, job.count)
        cpu = quiet.times(self._child.pid) - cpu
        mean = seconds * 1e9 / job.count
        return Sample(mean, cpu.ran / job.count, 1.0, 1.0)

    def pids(self) -> list[int]:
        return [self._child.pid]

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()
        self._ours.close()
        self._theirs.close()


class OnRing:
    """A device served by `vuproc run`, one queue, driven by the load generator."""

    def __init__(self, name: str, served: Served, *, works: bool) -> None:
        self.name = name
        self._served = served
        self._works = works
        # Beside it there is one in waiting, which has no part in the work.
        self.worker = int(ask(served.socket, Request("status"))["queues"][0]["pid"])

    def connected(self, *, kick: BellKind | None = BellKind.EVENTFD) -> Guest:
        """A guest with the ring started."""
        return Guest(self._served.socket, queue_size=QUEUE_SIZE, kick=kick)

    def run(self, job: Job, waiting: Waiting) -> Sample:
        kick = None if waiting is Waiting.BOTH_POLL else BellKind.EVENTFD
        with self.connected(kick=kick) as guest:
            guest.load(0, _warm_up(job))
            cpu = quiet.times(self.worker)
            stats = guest.load(0, job)
            cpu = quiet.times(self.worker) - cpu
        if self._works and stats.failed:
            raise RuntimeError(f"{self.name}: {stats.failed} of {stats.completed} requests failed")
        count = stats.completed
        return Sample(
            stats.seconds * 1e9 / count,
            cpu.ran / count,
            stats.kicks / count,
            stats.calls / count,
            stats.percentile_ns(50),
        )

    def pids(self) -> list[int]:
        return [self._served.pid, self.worker]


@contextmanager
def on_ring(
    name: str, device: type[Device] | Mapping[str, Any], *, works: bool = True, **options: Any
) -> Iterator[OnRing]:
    """Serve a device; `works`: it really reads, so no request may fail."""
    with serve(device, **options) as served:
        yield OnRing(name, served, works=works)


def job(*, count: int, depth: int, span: int, waiting: Waiting) -> Job:
    """4 KiB reads at random within the first `span` bytes of the disk."""
    poll = waiting is not Waiting.BOTH_SLEEP
    return Job(count=count, depth=depth, span=span, poll=poll, stall_s=STALL_S)


def _warm_up(job: Job) -> Job:
    return replace(job, count=min(job.count, WARM_UP))
