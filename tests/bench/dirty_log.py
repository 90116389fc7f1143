"""What the dirty log of a migration costs a disk: `python -m tests.bench.dirty_log`.

Run it from the root of the checkout. Runs with and without a log follow one another on the same
connection; what counts is the ratio of each pair. The CPU time tells on a busy machine, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench import quiet
from vuproc.testing import DirtyBitmap, Guest, Job, serve

RAM, MEMORY = "64MiB", 32 << 20
SPAN = 64 << 20
DEPTH = 128
ENGINES = ("sync", "python")
BLOCKS = (4096, 65536)


@dataclass(frozen=True)
class Sample:
    """One run: requests a second, and CPU time of the worker in ns a request."""

    rate: float
    cpu_ns: float
    clean: bool


@dataclass(frozen=True)
class Cost:
    """One engine with blocks of one size: the runs without a log, and those with one after each."""

    plain: list[Sample]
    logged: list[Sample]

    def ratio(self, value: Callable[[Sample], float]) -> float:
        """The median of the pairs' ratios, with to without."""
        pairs = zip(self.logged, self.plain, strict=True)
        return median(value(logged) / value(plain) for logged, plain in pairs)

    @property
    def disturbed(self) -> int:
        """Runs during which others used the machine."""
        return sum(not sample.clean for sample in (*self.plain, *self.logged))


def run(guest: Guest, job: Job, worker: int, tries: int) -> Sample:
    """One run, the least disturbed of some."""

    def load() -> tuple[float, float]:
        before = quiet.times(worker).ran
        stats = guest.load(0, job)
        return stats.rate, (quiet.times(worker).ran - before) / stats.completed

    (rate, cpu_ns), measured = quiet.measure(load, [worker], tries)
    return Sample(rate, cpu_ns, measured.clean)


def measure(engine: str, block: int, *, rounds: int, count: int, tries: int) -> Cost:
    """Random reads, which write to guest memory, with and without a log in turn."""
    job = Job(count=count, depth=DEPTH, block_size=block, span=SPAN, poll=True)
    found = Cost([], [])
    # Without looks for more work, so that the CPU time is the requests'.
    disk = {"type": "blk", "ram": RAM, "engine": engine, "poll": "off"}
    with (
        serve(disk) as served,
        served.guest(memory=MEMORY) as guest,
        DirtyBitmap(MEMORY * 2) as log,
    ):
        worker = served.wait_worker(0)
        guest.load(0, job)
        for _ in range(rounds):
            for wanted, samples in ((None, found.plain), (log, found.logged)):
                guest.log_writes(wanted)
                samples.append(run(guest, job, worker, tries))
        if not log.pages():
            raise RuntimeError("nothing was marked")
    return found


def line(engine: str, block: int, cost: Cost) -> str:
    """A row of the table."""
    rates = [median(s.rate for s in samples) / 1e3 for samples in (cost.plain, cost.logged)]
    cpu = [median(s.cpu_ns for s in samples) for samples in (cost.plain, cost.logged)]
    by_rate, by_cpu = cost.ratio(lambda s: s.rate), cost.ratio(lambda s: s.cpu_ns)
    return (
        f"{engine:<7} {block:<7} {rates[0]:7.1f} {rates[1]:7.1f} {by_rate:6.3f} {'':8} "
        f"{cpu[0]:9.0f} {cpu[1]:9.0f} {by_cpu:6.3f}   {cost.disturbed} runs disturbed"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.dirty_log", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of runs (9)")
    parser.add_argument("--count", type=int, default=100_000, help="requests a run (100000)")
    parser.add_argument("--tries", type=int, default=3, help="until nobody else disturbed it (3)")
    options = parser.parse_args(arguments)
    print(f"random reads, depth {DEPTH}, medians of {options.rounds} runs each, in turn")
    print("engine  bytes   kIOPS without, with, ratio   worker's CPU ns without, with, ratio")
    for engine in ENGINES:
        for block in BLOCKS:
            # As many bytes in each run.
            count = max(options.count * 4096 // block, 64)
            cost = measure(engine, block, rounds=options.rounds, count=count, tries=options.tries)
            print(line(engine, block, cost), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
