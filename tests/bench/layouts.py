"""What a packed ring gains on a split one: `python -m tests.bench.layouts`.

A network device that drops every frame serves rings of both in turn: in one thread with its driver,
of which the device's part alone is timed, for requests of one descriptor and of more; as a process,
with the load generator as the driver, which polls; and with DPDK's virtio-user, where that is
installed. Run it from the root of the checkout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from tests.bench import quiet
from tests.bench.one_thread import (
    CHAINS,
    FEATURES,
    FRAME,
    LAYOUTS,
    ONE,
    PACKED,
    SIZE,
    SPLIT,
    THREE,
    TX,
    Chain,
    Turns,
)
from vuproc.spec.net import HEADER
from vuproc.spec.virtio import Feature
from vuproc.testing import Guest, Served, serve
from vuproc.testing.job import Job, Kind
from vuproc.testing.vms import ClientMissing, Dpdk

DEPTHS = (1, 8, 32, SIZE)
FEW, MOST = 32, 240
"""Requests of more descriptors: so many at a time, or as many as take up so many slots."""
BAR, CHAIN_BAR = 1.15, 1.0
"""What the packed ring's rate is to be of the split one's, with a full ring in one thread: for
requests of one descriptor, and of three."""
SETTLE_S = 0.2
WARM_UP = 20_000

Sample = Callable[[], float]
"""Measures once: ns a request."""


@dataclass(frozen=True)
class Finding:
    """ns a request of each layout, a round each, and the rounds that others did not disturb."""

    title: str
    times: dict[str, list[float]] = field(default_factory=lambda: {SPLIT: [], PACKED: []})
    clean: list[bool] = field(default_factory=list)

    def ratio(self) -> float:
        """The packed ring's rate to the split one's, in the median."""
        return median(self._ratios())

    def line(self) -> str:
        """A row of the table."""
        ratios = sorted(self._ratios())
        split, packed = (median(self.times[name]) for name in (SPLIT, PACKED))
        low, high = ratios[len(ratios) // 4], ratios[len(ratios) * 3 // 4]
        return (
            f"{self.title:<47} {split:7.1f} {packed:7.1f}   "
            f"{self.ratio():.2f} ({low:.2f}-{high:.2f})   "
            f"{self.clean.count(False)} of {len(self.clean)}"
        )

    def _ratios(self) -> list[float]:
        every = [a / b for a, b in zip(self.times[SPLIT], self.times[PACKED], strict=True)]
        return [one for one, clean in zip(every, self.clean, strict=True) if clean] or every


def compare(
    title: str, sides: Mapping[str, Sample], pids: Sequence[int], rounds: int, *, crowded: bool
) -> Finding:
    """Each side once a round, forth and back. crowded: more threads than there are CPUs."""
    found = Finding(title)
    for number in range(rounds):
        clean = True
        for name in (SPLIT, PACKED) if number % 2 == 0 else (PACKED, SPLIT):
            value, measured = quiet.measure(sides[name], pids, 1, crowded=crowded)
            found.times[name].append(value)
            clean = clean and measured.clean
        found.clean.append(clean)
    return found


def in_one_thread(rounds: int, count: int) -> list[Finding]:
    """The device's part alone, `count` requests a sample: of one descriptor, then of more."""
    plain, order = FEATURES, FEATURES | Feature.IN_ORDER
    cases = [(features, ONE, depth) for features in (plain, order) for depth in DEPTHS]
    cases += [(plain, chain, depth) for chain in CHAINS for depth in (FEW, MOST // chain.slots)]
    return [_one_case(*case, rounds, count) for case in cases]


def _one_case(features: int, chain: Chain, depth: int, rounds: int, count: int) -> Finding:
    sides = {
        name: Turns(layout, depth, count, features, chain).run for name, layout in LAYOUTS.items()
    }
    for run in sides.values():
        run()
    title = _title(chain, depth, ", in order" if features & Feature.IN_ORDER else "")
    return compare(title, sides, [], rounds, crowded=False)


def _title(chain: Chain, depth: int, order: str = "") -> str:
    return f"one thread, {chain.title}{depth} at a time{order}"


def over_processes(rounds: int, seconds: float) -> Finding:
    """A worker, and the load generator in this process."""
    with ExitStack() as stack:
        sides: dict[str, Sample] = {}
        pids: list[int] = []
        for name in (SPLIT, PACKED):
            served = stack.enter_context(serve({"type": "net"}, queue_size=SIZE))
            guest = stack.enter_context(
                served.guest(queues=2, queue_size=SIZE, packed=name == PACKED)
            )
            pids.append(served.wait_worker(TX))

            count = int(seconds * 1e9 / _loaded(guest, WARM_UP))
            sides[name] = partial(_loaded, guest, count)
        return compare("two processes, a driver that polls", sides, pids, rounds, crowded=False)


def with_dpdk(rounds: int, seconds: float) -> Finding:
    """A worker, and testpmd that sends all it can. ClientMissing without it."""
    with ExitStack() as stack:
        sides: dict[str, Sample] = {}
        pids: list[int] = []
        for name in (SPLIT, PACKED):
            served = stack.enter_context(serve({"type": "net"}, queue_size=SIZE))
            port = stack.enter_context(Dpdk(served.socket, packed=name == PACKED, size=SIZE))
            pids += [served.wait_worker(TX), port.process.pid]
            sides[name] = partial(_sent, served, port, seconds)
        return compare("DPDK's testpmd, txonly", sides, pids, rounds, crowded=True)


def _loaded(guest: Guest, count: int) -> float:
    """ns a frame, so many of them."""
    return 1e9 / guest.load(TX, _frames(count)).rate


def _sent(served: Served, port: Dpdk, seconds: float) -> float:
    """ns a frame while testpmd sends."""
    port.start("txonly")
    try:
        time.sleep(SETTLE_S)
        began, before = time.monotonic_ns(), served.status().queues[TX].requests
        time.sleep(seconds)
        took, frames = time.monotonic_ns() - began, served.status().queues[TX].requests - before
    finally:
        port.stop()
    if not frames:
        raise RuntimeError("testpmd sent nothing")
    return took / frames


def _frames(count: int) -> Job:
    return Job(
        count=count,
        depth=SIZE,
        kind=Kind.PLAIN,
        out_size=FRAME,
        in_size=0,
        header=bytes(HEADER.size),
        indirect=False,
        poll=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the bar is not met."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.layouts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of each side (15, or 4 times that)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a sample (0.3)")
    parser.add_argument("--count", type=int, default=30_000, help="requests in one thread (30000)")
    parser.add_argument("--only", choices=["thread", "processes", "dpdk"], help="one of the three")
    options = parser.parse_args(arguments)
    print(f"ns a frame of {FRAME} bytes; medians of the rounds, in which both take turns")
    print(f"{'':<47}   split  packed   packed's rate x split's (quartiles)   disturbed")
    found = []
    if options.only in (None, "thread"):
        found = in_one_thread(4 * options.rounds, options.count)
        print("\n".join(one.line() for one in found), flush=True)
    if options.only in (None, "processes"):
        print(over_processes(options.rounds, options.seconds).line(), flush=True)
    if options.only in (None, "dpdk"):
        try:
            print(with_dpdk(options.rounds, options.seconds).line())
        except ClientMissing as error:
            print(f"DPDK's testpmd is not here: {error}")
    bars = {_title(ONE, SIZE): BAR, _title(THREE, MOST // THREE.slots): CHAIN_BAR}
    met = [_judged(one, bars[one.title]) for one in found if one.title in bars]
    return 0 if all(met) else 1


def _judged(one: Finding, bar: float) -> bool:
    met = one.ratio() >= bar
    print(f"{one.title}: {one.ratio():.2f}; the bar of {bar:g} is {'met' if met else 'NOT met'}")
    return met


if __name__ == "__main__":
    sys.exit(main())
