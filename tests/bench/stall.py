"""How long a driver waits when a worker dies: SIGKILL to the next completion.

    python -m tests.bench.stall --kills 300

One queue of a disk in memory with 16 requests in flight all the time, a driver that sleeps on its
interrupts, a kill now and then. It prints median and 99th percentile, which are to be under 3.5 and
10 ms on a machine with nothing else to do; exit code 1 if they are not. With `--queues` the disk
has others, too, which idle. The kernel ends a process after it has taken down its page tables:
`--touched` has the worker use so many MiB of guest memory before each kill, for which no bar is
set. With many kills, the rate, memory and descriptors before the first tenth of them and before the
last say whether anything grows.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import statistics
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.crash.soak import Usage
from vuproc.ops.admin import Request, ask
from vuproc.spec.blk import SECTOR_SIZE, BlkStatus, BlkType
from vuproc.testing.guest import Guest
from vuproc.testing.memory import Allocation
from vuproc.testing.serve import serve

DEPTH = 16
BLOCK_SIZE = 4096
BLOCKS = 2048
MIB = 1 << 20
PERIOD_S = 0.25
"""From one kill to the next, at least: the next standby is ready by then."""
JITTER_S = 0.05
BOUND_S = 20.0
MEDIAN_BAR_S = 0.0035
P99_BAR_S = 0.010

_HEADER = struct.Struct("<IIQ")


@dataclass(frozen=True)
class Death:
    """One kill: what the driver saw, in seconds since SIGKILL, and how things were before it."""

    gone: float
    """The process had ended."""
    stall: float
    """The first completion of its successor."""
    rate: float
    """Requests a second before it."""
    usage: tuple[Usage, Usage]
    """What the master and its forkserver held before it."""


class Driver:
    """Keeps `DEPTH` random reads and writes in flight on queue 0.

    `touch` has the device write to `touched` MiB of the guest's memory once.
    """

    def __init__(self, guest: Guest, touched: int) -> None:
        queue = guest.queues[0]
        assert queue.kick_bell is not None
        self._kick, self._call = queue.kick_bell, queue.call_bell
        self._ring = queue.ring
        self._random = random.Random(1)
        self._slots: dict[int, tuple[Allocation, Allocation, Allocation]] = {}
        self._wide: list[int] = []
        self._completed = 0
        self._times: list[float] = []
        """When something was completed, since the last kill."""
        allocate = guest.ram.allocate
        self._area = [allocate(MIB, BLOCK_SIZE).guest_addr for _ in range(touched)]
        for _ in range(DEPTH):
            self._submit((allocate(_HEADER.size), allocate(BLOCK_SIZE), allocate(1)))
        self._publish()

    def touch(self) -> None:
        """Reads into all of the area, while the rest goes on."""
        self._wide = list(self._area)
        while self._wide:
            self._turn(BOUND_S)

    def run_for(self, seconds: float) -> float:
        """Serve completions for so long; requests a second."""
        began, before = time.monotonic(), self._completed
        while (left := began + seconds - time.monotonic()) > 0:
            self._turn(left)
        return (self._completed - before) / (time.monotonic() - began)

    def kill(self, pid: int) -> tuple[float, float]:
        """Kill the worker and go on until it is gone and something was completed afterwards: the
        seconds until the process had ended, and until its successor had completed something.

        The successor may begin before the process has ended, and the worker may have completed
        something with its last breath. What tells them apart is the pause in between, the longest
        of all.
        """
        pidfd = os.pidfd_open(pid)
        try:
            began = time.monotonic()
            self._times = [began]
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            while not self._turn(BOUND_S, pidfd):
                self._check(began)
            gone = time.monotonic()
            while self._times[-1] < gone:
                self._turn(BOUND_S)
                self._check(began)
        finally:
            os.close(pidfd)
        _, first = max(pairwise(self._times), key=lambda pause: pause[1] - pause[0])
        return gone - began, first - began

    def _check(self, began: float) -> None:
        if time.monotonic() - began > BOUND_S:
            raise RuntimeError(f"no completion, or no end, for {BOUND_S:g} s")

    def _turn(self, timeout_s: float, *others: int) -> bool:
        """Sleep until something is completed, take it, ask for more; whether `others` woke us."""
        if self._reap() or self._ring.arm():
            timeout_s = 0
        poller = select.poll()
        for number in (self._call.ours.fileno(), *others):
            poller.register(number, select.POLLIN)
        woken = [number for number, _ in poller.poll(timeout_s * 1000)]
        if self._call.ours.fileno() in woken:
            self._call.wait(0)
        return any(number in woken for number in others)

    def _reap(self) -> int:
        done = self._ring.reap()
        self._completed += len(done)
        if done:
            self._times.append(time.monotonic())
        # All of them first: a new request may get the head of one that was just taken back.
        for slot in [self._slots.pop(head) for head, _ in done]:
            if slot[2].view[0] != BlkStatus.OK:
                raise RuntimeError(f"a request ended with status {slot[2].view[0]}")
            self._submit(slot)
        if done:
            self._publish()
        return len(done)

    def _submit(self, slot: tuple[Allocation, Allocation, Allocation]) -> None:
        header, data, status = slot
        read = bool(self._wide) or self._random.random() < 0.5
        sector = self._random.randrange(BLOCKS) * BLOCK_SIZE // SECTOR_SIZE
        target, length = data.guest_addr, BLOCK_SIZE
        if self._wide:
            sector, target, length = 0, self._wide.pop(), MIB
        header.view[:] = _HEADER.pack(BlkType.IN if read else BlkType.OUT, 0, sector)
        status.view[0] = 0xFF
        segments = [
            (header.guest_addr, _HEADER.size, False),
            (target, length, read),
            (status.guest_addr, 1, True),
        ]
        self._slots[self._ring.add(segments)] = slot

    def _publish(self) -> None:
        if self._ring.publish():
            self._kick.ring()


def measure(
    kills: int, period_s: float = PERIOD_S, touched: int = 0, queues: int = 1
) -> list[Death]:
    """Kill the worker of the first of `queues` `kills` times, each after it used `touched` MiB of
    guest memory.
    """
    with serve({"type": "blk", "ram": BLOCKS * BLOCK_SIZE, "queues": queues}) as served:
        with served.guest(memory=(touched + 16) * MIB, queues=queues) as guest:
            driver = Driver(guest, touched)
            jitter = random.Random(2)
            deaths = []
            for _ in range(kills):
                driver.touch()
                # Whoever dies has not just asked the master, or kept it from its work.
                status = ask(served.socket, Request("status"))
                worker = _worker(status)
                usage = Usage.of(status["pid"]), Usage.of(_parent_of(worker))
                rate = driver.run_for(period_s + jitter.uniform(0, JITTER_S))
                deaths.append(Death(*driver.kill(worker), rate, usage))
            return deaths


def _worker(status: Mapping[str, Any]) -> int:
    pid = status["queues"][0]["pid"]
    if pid is None:
        raise RuntimeError("queue 0 has no worker")
    return int(pid)


def _parent_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("PPid:"))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.stall", description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--period", type=float, default=PERIOD_S, help="seconds between kills")
    parser.add_argument("--touched", type=int, default=0, help="MiB of guest memory in use")
    parser.add_argument("--queues", type=int, default=1, help="of the disk, all but one idle")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    deaths = measure(options.kills, options.period, options.touched, options.queues)
    print(
        f"{len(deaths)} kills, {options.queues} queues, {DEPTH} in flight, "
        f"{options.touched} MiB touched, load average {load:.1f} at the start"
    )
    rows = {
        "SIGKILL to end of process": [death.gone for death in deaths],
        "SIGKILL to next completion": [death.stall for death in deaths],
    }
    for name, values in rows.items():
        figures = {
            "median": statistics.median(values),
            "p99": percentile(values, 99),
            "max": max(values),
        }
        text = "  ".join(f"{figure} {value * 1000:7.2f} ms" for figure, value in figures.items())
        print(f"{name:28} {text}")
    part = max(1, len(deaths) // 10)
    for name, some in ("first", deaths[:part]), ("last", deaths[-part:]):
        rate = statistics.median(death.rate for death in some)
        master, forkserver = some[-1].usage
        print(
            f"before the {name} {part} kills: {rate / 1000:.1f} kIOPS, "
            f"master {master}, forkserver {forkserver}"
        )
    if options.touched:
        return 0
    stalls = rows["SIGKILL to next completion"]
    fine = statistics.median(stalls) < MEDIAN_BAR_S and percentile(stalls, 99) < P99_BAR_S
    print(
        f"bars: median {MEDIAN_BAR_S * 1000:g} ms, p99 {P99_BAR_S * 1000:g} ms: "
        f"{'kept' if fine else 'not kept'}"
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
