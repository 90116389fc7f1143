"""What a network device takes for each frame that its driver sends: `python -m tests.bench.frames`.

Run it from the root of the checkout. Every side runs once a round, in turn, and is compared with
the native null device of the same round. The driver is the load generator, which only fills its
ring, so that the device's side is what is measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from tests.devices.networks import Counting
from vuproc.spec.net import HEADER
from vuproc.testing import Guest, serve
from vuproc.testing.job import Job, Kind

TX = 1
DEPTH = 256
SIZES = (60, 1500)
BAR_RATE = 3e6
"""Frames a second of 60 bytes into a sink in Python."""
BAR_SHARE = 0.5
"""And its share of the native null device's, of 1500 bytes."""
SINK = "frames, a sink in Python"
NULL = "null, native"


def frames(size: int, count: int) -> Job:
    """So many frames of this size, without a pause."""
    return Job(
        count=count,
        depth=DEPTH,
        kind=Kind.PLAIN,
        out_size=HEADER.size + size,
        in_size=0,
        header=bytes(HEADER.size),
        poll=True,
    )


def measure(rounds: int, seconds: float) -> dict[int, dict[str, list[float]]]:
    """Frames a second, by size and side, a round each."""
    with ExitStack() as stack:
        guests: dict[str, Guest] = {}
        for name, device in (
            (NULL, {"type": "net"}),
            ("null, Python", {"type": "net", "engine": "python"}),
            (SINK, Counting),
        ):
            served = stack.enter_context(serve(device, queue_size=DEPTH))
            guests[name] = stack.enter_context(served.guest(queues=2, queue_size=DEPTH))
        found: dict[int, dict[str, list[float]]] = {}
        for size in SIZES:
            sides = found[size] = {name: [] for name in guests}
            counts = {
                name: int(seconds * guest.load(TX, frames(size, 20_000)).rate)
                for name, guest in guests.items()
            }
            for turn in range(rounds):
                for name in sides if turn % 2 == 0 else reversed(sides):
                    stats = guests[name].load(TX, frames(size, counts[name]))
                    sides[name].append(stats.rate)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a bar is not met."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.frames", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="of each side (9)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a sample (0.3)")
    options = parser.parse_args(arguments)
    found = measure(options.rounds, options.seconds)
    for size, sides in found.items():
        print(f"frames of {size} bytes, median of {options.rounds}:")
        for name, rates in sides.items():
            ratio = median(a / b for a, b in zip(rates, sides[NULL], strict=True))
            print(f"  {name:<25} {median(rates) / 1e6:6.2f} M/s  {ratio:5.2f} of {NULL}")
    rate = median(found[60][SINK])
    share = median(a / b for a, b in zip(found[1500][SINK], found[1500][NULL], strict=True))
    met = rate >= BAR_RATE and share >= BAR_SHARE
    print(
        f"{rate / 1e6:.2f} M/s and {share:.2f}: the bars of {BAR_RATE / 1e6:g} M/s of 60 bytes "
        f"and {BAR_SHARE:g} of {NULL} at 1500 are {'met' if met else 'NOT met'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
