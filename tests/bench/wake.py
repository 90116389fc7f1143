"""What a request costs a worker that has to be woken for each: `python -m tests.bench.wake`.

The driver has one request at a time, and thinks before the next until the worker sleeps. Beside it
stands what no back-end can do without: a process that is woken by an eventfd, reads as much of the
image, and wakes the other one. Run it from the root of the checkout.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.scale_point import workers
from vuproc.spec.blk import BlkType
from vuproc.testing import serve
from vuproc.workers.parent_death import die_with_parent

ENGINES = "sync", "python"
THINK_NS = 100_000
ALONE = "a wake-up and a read alone"
IMAGE_BYTES, BLOCK = 1 << 20, 4096
HEADER = int(BlkType.IN).to_bytes(4, "little") + bytes(12)


@dataclass(frozen=True, slots=True)
class Cost:
    """A request: CPU time of the process that does the work, and how often it went to sleep."""

    cpu_us: float
    sleeps: float


@dataclass(frozen=True, slots=True)
class Side:
    """One process, and what has it do so many requests, one after the other."""

    name: str
    pid: int
    run: Callable[[int], None]

    def measure(self, count: int) -> Cost:
        before = self._spent()
        self.run(count)
        cpu_ns, sleeps = (now - then for now, then in zip(self._spent(), before, strict=True))
        return Cost(cpu_ns / count / 1e3, sleeps / count)

    def _spent(self) -> tuple[int, int]:
        cpu_ns = int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0])
        status = Path(f"/proc/{self.pid}/status").read_text()
        (sleeps,) = (
            int(line.split()[1])
            for line in status.splitlines()
            if line.startswith("voluntary_ctxt_switches")
        )
        return cpu_ns, sleeps


def think(ns: int = THINK_NS) -> None:
    """Keep the driver's CPU busy until the other side is asleep."""
    end = time.perf_counter_ns() + ns
    while time.perf_counter_ns() < end:
        pass


@contextmanager
def disk(engine: str, image: Path, **keys: Any) -> Iterator[Side]:
    """A disk of ours with our own driver; `keys` are more of its device file."""
    device = {
        "type": "blk",
        "image": str(image),
        "readonly": True,
        "engine": engine,
        "poll": "off",
    }
    with serve(device, file=keys) as served, served.guest() as guest:

        def run(count: int) -> None:
            for _ in range(count):
                think()
                guest.do(0, [HEADER], [BLOCK, 1])

        (pid,) = workers(served)
        yield Side(f"vuproc {engine}", pid, run)


@contextmanager
def alone(image: Path) -> Iterator[Side]:
    """Nothing but the system calls."""
    with ExitStack() as stack:
        kick, call = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))
        stack.callback(os.close, kick)
        stack.callback(os.close, call)
        file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, file)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                die_with_parent(parent)
                while os.eventfd_read(kick) == 1:
                    os.pread(file, BLOCK, 0)
                    os.eventfd_write(call, 1)
            finally:
                os._exit(0)
        stack.callback(os.waitpid, pid, 0)
        stack.callback(os.eventfd_write, kick, 2)

        def run(count: int) -> None:
            for _ in range(count):
                think()
                os.eventfd_write(kick, 1)
                os.eventfd_read(call)

        yield Side(ALONE, pid, run)


def measure(count: int, rounds: int) -> dict[str, list[Cost]]:
    """The samples of each side, taken in turn."""
    with ExitStack() as stack:
        # Memory: of a disk on a disk it would be the disk's time.
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        image = Path(folder, "image")
        image.write_bytes(bytes(IMAGE_BYTES))
        sides = [stack.enter_context(alone(image))]
        sides += [stack.enter_context(disk(engine, image)) for engine in ENGINES]
        for side in sides:
            side.measure(count)
        found: dict[str, list[Cost]] = {side.name: [] for side in sides}
        for _ in range(rounds):
            for side in sides:
                found[side.name].append(side.measure(count))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.wake", description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="requests of a sample (4000)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each side (7)")
    options = parser.parse_args(arguments)
    found = measure(options.count, options.rounds)
    base = median(cost.cpu_us for cost in found[ALONE])
    print(f"{BLOCK} bytes of an image in memory, one request at a time; medians (least-most)")
    for name, costs in found.items():
        cpu = sorted(cost.cpu_us for cost in costs)
        sleeps = median(cost.sleeps for cost in costs)
        print(
            f"{name:28} CPU us {median(cpu):6.1f} ({cpu[0]:.1f}-{cpu[-1]:.1f}), "
            f"{median(cpu) / base:5.2f} of it alone, sleeps {sleeps:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
