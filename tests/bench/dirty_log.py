"""What the dirty log of a migration costs a disk: `python -m tests.bench.dirty_log`.

Run it from the root of the checkout. Runs with and without a log follow one another on the same
connection; what counts is the ratio of the rates of each pair.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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
class Cost:
    """One engine with blocks of one size: thousands of requests a second, and their ratios."""

    engine: str
    block: int
    plain: float
    logged: float
    ratio: float
    disturbed: int


def rate(guest: Guest, job: Job, pids: Sequence[int], tries: int) -> tuple[float, bool]:
    """Requests a second of one run, and whether it was undisturbed."""
    stats, measured = quiet.measure(lambda: guest.load(0, job), pids, tries)
    return stats.rate, measured.clean


def measure(engine: str, block: int, *, rounds: int, count: int, tries: int) -> Cost:
    """Random reads, which write to guest memory, with and without a log in turn."""
    job = Job(count=count, depth=DEPTH, block_size=block, span=SPAN, poll=True)
    plain: list[float] = []
    logged: list[float] = []
    disturbed = 0
    disk = {"type": "blk", "ram": RAM, "engine": engine}
    with (
        serve(disk) as served,
        served.guest(memory=MEMORY) as guest,
        DirtyBitmap(MEMORY * 2) as log,
    ):
        pids = [served.pid, *filter(None, (queue.pid for queue in served.status().queues))]
        guest.load(0, job)
        for _ in range(rounds):
            for wanted, rates in ((None, plain), (log, logged)):
                guest.log_writes(wanted)
                found, clean = rate(guest, job, pids, tries)
                rates.append(found)
                disturbed += not clean
        if not log.pages():
            raise RuntimeError("nothing was marked")
    ratio = median(with_log / without for with_log, without in zip(logged, plain, strict=True))
    return Cost(engine, block, median(plain) / 1e3, median(logged) / 1e3, ratio, disturbed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.dirty_log", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of runs (9)")
    parser.add_argument("--count", type=int, default=100_000, help="requests a run (100000)")
    parser.add_argument("--tries", type=int, default=3, help="until nobody else disturbed it (3)")
    options = parser.parse_args(arguments)
    print(f"random reads, depth {DEPTH}, kIOPS in the median of {options.rounds} runs each")
    print("engine  bytes   without a log  with a log  ratio  disturbed")
    for engine in ENGINES:
        for block in BLOCKS:
            # As many bytes in each run.
            count = max(options.count * 4096 // block, 64)
            found = measure(engine, block, rounds=options.rounds, count=count, tries=options.tries)
            print(
                f"{engine:<7} {block:<7} {found.plain:<14.1f} {found.logged:<11.1f} "
                f"{found.ratio:<6.3f} {found.disturbed} of {2 * options.rounds}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
