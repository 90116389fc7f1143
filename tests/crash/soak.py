"""A soak: verified random I/O on a served disk while its workers are killed at random.

    python -m tests.crash.soak --kills 1000 --queues 4

prints what was killed, requested, lost, doubled and wrong, and what it cost. Exit code 1 if
anything was lost, doubled, wrong or leaked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.blocks import BLOCK_SIZE, Blocks
from tests.crash.counted import TAGS, CountedBlk
from tests.crash.verified import Findings, VerifiedQueue
from tests.open_files import listeners, open_files
from vuproc.devices.blk_storage import check_direct
from vuproc.ops.admin import Request, ask
from vuproc.spec.blk import SECTOR_SIZE
from vuproc.spec.virtio import Feature
from vuproc.testing.serve import Served, reference, serve

BLOCKS = 1024
"""Blocks a queue: few, so that each is written and read often."""
DEPTH = 16
MASSACRE = 0.05
"""How often every worker is killed at once, the standby with them."""
WARM_UP_KILLS = 8
"""Deaths before the master's memory is looked at for the first time: each path was taken then."""
RSS_GROWTH_KIB = 4096
SETTLE_S = 30.0
DISKS = ("ram", "direct", "native")
"""In memory; an image past the page cache, by a handler in Python over io_uring, or natively."""
LOOK_S = 0.05


@dataclass(frozen=True)
class Usage:
    """What one process holds. A master has the listener of each worker's filter, once the worker
    has locked itself in; they are counted apart, since that is some time after its start.
    """

    fds: int
    rss_kib: int
    listeners: int

    @staticmethod
    def of(pid: int) -> Usage:
        """Of a running process."""
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        rss = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
        return Usage(open_files(pid), rss, listeners(pid))

    def __str__(self) -> str:
        return f"{self.fds} fds, {self.rss_kib} KiB"


@dataclass
class Result:
    """What a soak found. `usage` is (before, after) by process."""

    seconds: float = 0.0
    kills: int = 0
    queues: list[Findings] = field(default_factory=list)
    executions: Counter[int] = field(default_factory=Counter)
    """Requests by the number of times that they were executed."""
    served: int = 0
    """Completions that the device's counters have."""
    usage: dict[str, tuple[Usage, Usage]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Submitted, and so completed if none was lost."""
        return sum(findings.requests for findings in self.queues)

    @property
    def longest_stall_s(self) -> float:
        """Seconds that a driver with requests in flight saw no completion, at most."""
        return max(findings.stall_s for findings in self.queues)

    @property
    def faults(self) -> list[str]:
        """Everything that must not be, in words."""
        found = []
        for queue, each in enumerate(self.queues):
            for kind in ("lost", "doubled", "wrong"):
                found += [f"queue {queue}: {kind}: {text}" for text in getattr(each, kind)]
        if self.executions[0]:
            found.append(f"{self.executions[0]} requests were completed and never executed")
        before, after = ({n: both[i] for n, both in self.usage.items()} for i in (0, 1))
        found += [
            f"{name}: had {before[name]}, has {after[name]}" for name in _grown(before, after)
        ]
        return found

    def __str__(self) -> str:
        counts = {
            kind: sum(len(getattr(findings, kind)) for findings in self.queues)
            for kind in ("lost", "doubled", "wrong")
        }
        executed = sum(times * count for times, count in self.executions.items())
        spread = ", ".join(f"{n} times: {count}" for n, count in sorted(self.executions.items()))
        rate = f"{executed / max(1, self.requests):.4f} a request ({spread})"
        lines = [
            f"kills           {self.kills} in {self.seconds:.1f} s",
            f"requests        {self.requests} (the device's counters have {self.served})",
            *(f"{kind:15} {count}" for kind, count in counts.items()),
            f"executions      {rate if self.executions else 'not counted by this disk'}",
            f"longest stall   {self.longest_stall_s * 1000:.1f} ms",
            *(
                f"{name:15} {before} before, {after} after"
                for name, (before, after) in self.usage.items()
            ),
        ]
        return "\n".join(lines)


class Killer:
    """Kills workers of a served device at random times, never the same one twice."""

    def __init__(self, served: Served, seed: int, period_s: float) -> None:
        self.kills = 0
        self.over = threading.Event()
        self._served = served
        self._random = random.Random(seed)
        self._period_s = period_s
        self._killed: set[tuple[int, int]] = set()

    def kill(self, count: int) -> None:
        """Until `count` workers of queues are dead, or `over` is set."""
        while self.kills < count and not self.over.wait(
            self._random.expovariate(1 / self._period_s)
        ):
            status = ask(self._served.socket, Request("status"))
            alive = [queue for queue in status["queues"] if queue["pid"] is not None]
            everyone = self._random.random() < MASSACRE
            if everyone and status["standby"] is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(status["standby"], signal.SIGKILL)
            for queue in alive if everyone else self._random.sample(alive, min(1, len(alive))):
                self._kill(queue["pid"], queue["restarts"])

    def _kill(self, pid: int, restarts: int) -> None:
        # A number may come again, but not in the same life of the seat.
        if (pid, restarts) in self._killed:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._killed.add((pid, restarts))
            self.kills += 1


def soak(
    *,
    kills: int,
    queues: int,
    seed: int,
    period_s: float = 0.02,
    disk: str = "ram",
    packed: bool = False,
    directory: Path | None = None,
) -> Result:
    """Kill `kills` workers, one every `period_s` seconds on average, and verify everything.

    `disk` is one of `DISKS`; images lie in `directory`, which must be on a disk for "direct".
    `packed` is the guest's choice of rings.
    """
    result = Result()
    with tempfile.TemporaryDirectory(prefix="vuproc-soak-", dir=directory) as name:
        counts = Path(name, "executions")
        counts.touch()
        os.truncate(counts, queues * TAGS)
        device: dict[str, object] = {"type": reference(CountedBlk), "executions": str(counts)}
        if disk == "native":
            device = {"type": "blk"}
        if disk == "ram":
            device["ram"] = queues * BLOCKS * BLOCK_SIZE
        else:
            image = Path(name, "image")
            image.write_bytes(bytes(queues * BLOCKS * BLOCK_SIZE))
            problem = check_direct(str(image), SECTOR_SIZE)
            if problem is not None:
                print(f"not direct: {problem}")
            device |= {"image": str(image), "direct": problem is None}
        began = time.monotonic()
        with serve(device, queues=queues) as served:
            try:
                _drive(served, queues, packed, kills, seed, period_s, result)
            finally:
                result.log = served.lines
        result.seconds = time.monotonic() - began
        if disk == "native":
            return result  # it counts nothing
        with counts.open("rb") as file:
            for queue, findings in enumerate(result.queues):
                file.seek(queue * TAGS + 1)
                result.executions.update(file.read(findings.requests))
    return result


def _drive(
    served: Served,
    queues: int,
    packed: bool,
    kills: int,
    seed: int,
    period_s: float,
    result: Result,
) -> None:
    # With and without EVENT_IDX, which is how interrupts get lost.
    without = Feature.EVENT_IDX if seed % 2 else 0
    killer = Killer(served, seed, period_s)
    with served.guest(queues=queues, memory=16 << 20, without=without, packed=packed) as guest:
        drivers = [
            VerifiedQueue(
                guest, queue, Blocks(queue * BLOCKS, BLOCKS), depth=DEPTH, seed=seed + queue
            )
            for queue in range(queues)
        ]
        with ThreadPoolExecutor(queues) as pool:
            running = [pool.submit(each.run, lambda: not killer.over.is_set()) for each in drivers]
            try:
                killer.kill(min(kills, WARM_UP_KILLS))
                before = _usage(served, lambda usage: True)
                killer.kill(kills)
            finally:
                killer.over.set()
            result.queues = [each.result() for each in running]
        after = _usage(served, lambda usage: not _grown(before, usage))
        status = ask(served.socket, Request("status"))
    result.kills = killer.kills
    result.served = sum(queue["requests"] for queue in status["queues"])
    result.usage = {name: (before[name], after[name]) for name in before}


def _usage(served: Served, good: Callable[[dict[str, Usage]], bool]) -> dict[str, Usage]:
    """Of the processes that live as long as the device, with every worker there.

    Looks again until what it finds is `good`, for a while: an end takes a moment to be noticed.
    """
    deadline = time.monotonic() + SETTLE_S
    pause = threading.Event()
    while True:
        workers = _workers(served)
        with open(f"/proc/{served.pid}/task/{served.pid}/children", encoding="ascii") as children:
            helpers = {f"helper {n + 1}": int(pid) for n, pid in enumerate(children.read().split())}
        usage = {name: Usage.of(pid) for name, pid in {"master": served.pid, **helpers}.items()}
        settled = None not in workers and workers == _workers(served)
        settled = settled and usage["master"].listeners <= len(workers)
        if (settled and good(usage)) or time.monotonic() > deadline:
            return usage
        pause.wait(LOOK_S)


def _workers(served: Served) -> list[int | None]:
    """Pids of the standby and of each queue's worker; None where there is none."""
    status = ask(served.socket, Request("status"))
    return [status["standby"], *(queue["pid"] for queue in status["queues"])]


def _grown(before: dict[str, Usage], after: dict[str, Usage]) -> list[str]:
    """The processes which hold more than before, by name."""
    return [
        name
        for name, usage in after.items()
        if usage.fds > before[name].fds or usage.rss_kib > before[name].rss_kib + RSS_GROWTH_KIB
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--queues", type=int, default=4)
    parser.add_argument("--period", type=float, default=0.02, help="seconds from kill to kill")
    parser.add_argument("--disk", choices=DISKS, default="ram")
    parser.add_argument("--packed", action="store_true", help="packed rings")
    parser.add_argument("--directory", type=Path, help="where images lie")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--log", action="store_true", help="show the device's log, too")
    options = parser.parse_args(arguments)
    print(f"seed            {options.seed}", flush=True)
    result = soak(
        kills=options.kills,
        queues=options.queues,
        seed=options.seed,
        period_s=options.period,
        disk=options.disk,
        packed=options.packed,
        directory=options.directory,
    )
    if options.log:
        print("\n".join(result.log))
    print(result)
    for fault in result.faults:
        print(f"FAULT: {fault}")
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
