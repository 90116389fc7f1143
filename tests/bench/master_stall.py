"""How long a front-end waits when the master dies: SIGKILL to the answer to a message.

    python -m tests.bench.master_stall --kills 100

Two supervised disks in memory, one with a standby master and one without (`--no-standby`), whose
masters are killed in turn, each once it has come to rest. At the kill the front-end asks for the
configuration space, and then the guest for a block. Prints median and 99th percentile; the median
with a standby is to be under 250 ms on a machine with nothing else to do; exit code 1 if it is not.
Then what a standby costs: memory of its own (private), and its share of all (PSS).
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.stall import percentile
from tests.conformance.processes import family
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve

DISK = {"type": "blk", "ram": "8MiB"}
BLOCK = b"m" * 512
REST_S = 2.5
"""Seconds from one kill of a master to the next, at least: its successor has settled by then."""
BOUND_S = 60.0
LOOK_S = 0.02
MEDIAN_BAR_S = 0.25


@dataclass
class Side:
    """One of the two devices, and the seconds from its masters' SIGKILLs."""

    served: Served
    guest: Guest
    has_standby: bool
    answers: list[float] = field(default_factory=list)
    completions: list[float] = field(default_factory=list)
    killed_at: float = 0.0

    def kill(self) -> None:
        """Kill the master, which is at rest, and wait for what comes after it."""
        master = self.rest()
        block = Block(self.guest)
        block.write(0, BLOCK)
        self.killed_at = begun = time.monotonic()
        os.kill(master, signal.SIGKILL)
        block.config()
        self.answers.append(time.monotonic() - begun)
        if block.read(0, len(BLOCK)) != BLOCK:
            raise RuntimeError("the disk is another one")
        self.completions.append(time.monotonic() - begun)

    def rest(self) -> int:
        """Wait until the master has settled, and the standby is ready; the master's process."""
        deadline = time.monotonic() + BOUND_S
        while True:
            status = self.served.status()
            now = time.monotonic()
            ready = status.standby_master is not None or not self.has_standby
            if ready and now - self.killed_at >= REST_S:
                return status.pid
            if now > deadline:
                raise RuntimeError(f"no standby master for {BOUND_S:g} s")
            select.select([], [], [], LOOK_S)

    def memory(self) -> list[tuple[str, int, int]]:
        """Of the standby and its forkserver: name, private KiB, proportional KiB."""
        self.rest()
        standby = self.served.status().standby_master
        assert standby is not None
        there = family(self.served.pid).values()
        processes = [("standby master", standby)]
        processes += [("its forkserver", each.pid) for each in there if each.parent == standby]
        return [(name, *_memory(pid)) for name, pid in processes]


def _memory(pid: int) -> tuple[int, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return found["Private_Clean"] + found["Private_Dirty"], found["Pss"]


def measure(kills: int) -> tuple[Side, Side, list[tuple[str, int, int]]]:
    """Kill each master `kills` times: with a standby, without one, and what the standby costs."""
    cold_arguments = ("--supervised", "--no-standby")
    with serve(DISK, arguments=("--supervised",)) as warm_served:
        with serve(DISK, arguments=cold_arguments) as cold_served:
            with warm_served.guest(timeout_s=BOUND_S) as warm_guest:
                with cold_served.guest(timeout_s=BOUND_S) as cold_guest:
                    warm = Side(warm_served, warm_guest, True)
                    cold = Side(cold_served, cold_guest, False)
                    for _ in range(kills):
                        for side, other in ((cold, warm), (warm, cold)):
                            other.rest()  # it is not to take the CPUs meanwhile
                            side.kill()
                    return warm, cold, warm.memory()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.master_stall", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each of the two masters")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    warm, cold, memory = measure(options.kills)
    print(f"{options.kills} kills each, 1 queue, load average {load:.1f} at the start")
    for name, side in (("with a standby", warm), ("without", cold)):
        for what, values in (("answer", side.answers), ("completion", side.completions)):
            middle, rare = statistics.median(values) * 1000, percentile(values, 99) * 1000
            print(
                f"SIGKILL to {what:10} {name:14} median {middle:7.1f} ms  p99 {rare:7.1f} ms  "
                f"max {max(values) * 1000:7.1f} ms"
            )
    for name, private, proportional in memory:
        print(f"{name}: {private / 1024:.1f} MiB of its own, PSS {proportional / 1024:.1f} MiB")
    kept = statistics.median(warm.answers) < MEDIAN_BAR_S
    print(f"bar: median {MEDIAN_BAR_S * 1000:g} ms: {'kept' if kept else 'not kept'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
