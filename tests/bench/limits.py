"""How well limits are kept, beside QEMU's own and fio's: `python -m tests.bench.limits`.

A disk in tmpfs with a limit, by vuproc (`limits`) and by qemu-storage-daemon (a throttle group), in
turn; the same driver keeps its requests in flight for some seconds. Of each: what passed as a share
of the limit once its burst is used up, latency, the CPU time of the side that waits, and how long a
burst takes that may pass at once. With `--fio` the same limits are kept by fio, too, which paces
itself on a disk of vuproc's without limits: all three in one User-Mode Linux, by one fio.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import quiet
from tests.bench.backends import Missing, child
from tests.bench.images import Images
from tests.bench.work import Store
from vuproc.ops.admin import Request, ask
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job, Stats
from vuproc.testing.serve import serve

MIB = 1 << 20
SPAN = 64 * MIB
DEPTH = 32
QUEUE_SIZE = 256
STALL_S = 60.0


@dataclass(frozen=True, slots=True)
class Limit:
    """Requests or bytes a second, and what may come at once: as many of them as `burst`."""

    iops: int = 0
    bytes: int = 0
    burst: int = 0

    def __str__(self) -> str:
        burst = f", {self.burst} at once" if self.burst else ""
        return (f"{self.iops} a second" if self.iops else f"{self.bytes / MIB:g} MiB/s") + burst

    @property
    def block(self) -> int:
        """Bytes of a request by which it is measured."""
        return 4096 if self.iops else 65536

    @property
    def requests(self) -> float:
        """Of them, a second."""
        return self.iops or self.bytes / self.block

    def ours(self) -> dict[str, int]:
        """As vuproc has it."""
        kind, value = ("iops", self.iops) if self.iops else ("bytes", self.bytes)
        return {kind: value, **({f"{kind}_burst": self.burst} if self.burst else {})}

    def qemus(self) -> str:
        """As a throttle group has it: a burst is a second at a higher rate."""
        kind, value = ("iops", self.iops) if self.iops else ("bps", self.bytes)
        more = f",x-{kind}-total-max={self.burst}" if self.burst else ""
        return f"x-{kind}-total={value}{more}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run under a limit."""

    kept: float
    """What passed in a second, as a share of the limit."""
    p99_ms: float
    cpu: float
    """Share of a CPU that the device's side took."""
    burst_s: float = 0.0
    """Seconds until as much had passed as may come at once, after a quiet time."""


@dataclass(frozen=True, slots=True)
class Side:
    """A limited disk: its socket and the processes behind it."""

    name: str
    socket: Path
    pids: tuple[int, ...]

    def run(self, limit: Limit, seconds: float) -> Sample:
        """Use up the burst, and then so many seconds' worth."""
        with Guest(self.socket, queue_size=QUEUE_SIZE, memory=SPAN) as guest:
            burst_s = 0.0
            if limit.burst:
                # As long as it takes to have all of it once more.
                time.sleep(limit.burst / (limit.iops or limit.bytes))
                count = limit.burst if limit.iops else limit.burst // limit.block
                burst_s = self._load(guest, limit, count).seconds
            self._load(guest, limit, max(DEPTH, int(limit.requests / 5)))
            before = self.ran()
            stats = self._load(guest, limit, int(limit.requests * seconds))
            spent = self.ran() - before
        took = stats.seconds
        return Sample(
            stats.completed / took / limit.requests,
            stats.percentile_ns(99) / 1e6,
            spent / 1e9 / took,
            burst_s,
        )

    def ran(self) -> int:
        """CPU time of its processes so far, in ns."""
        return sum(quiet.times(pid).ran for pid in self.pids)

    @staticmethod
    def _load(guest: Guest, limit: Limit, count: int) -> Stats:
        job = Job(count=count, depth=DEPTH, span=SPAN, block_size=limit.block, stall_s=STALL_S)
        stats = guest.load(0, job)
        if stats.failed:
            raise Missing(f"{stats.failed} requests failed")
        return stats


@contextmanager
def ours(image: Path, limit: Limit | None, name: str = "vuproc") -> Iterator[Side]:
    """vuproc's disk with its limit, or without one."""
    device: dict[str, Any] = {
        "type": "blk",
        "image": str(image),
        "engine": "sync",
        "locking": "off",
    }
    device |= {} if limit is None else {"limits": limit.ours()}
    with serve(device) as served:
        worker = int(ask(served.socket, Request("status"))["queues"][0]["pid"])
        yield Side(name, served.socket, (worker,))


@contextmanager
def qemus(image: Path, limit: Limit) -> Iterator[Side]:
    """qemu-storage-daemon's disk behind a throttle group. Raises Missing."""
    if shutil.which("qemu-storage-daemon") is None:
        raise Missing("there is no qemu-storage-daemon here")
    with tempfile.TemporaryDirectory(prefix="vuproc-bench-") as folder:
        path = Path(folder, "limited.sock")
        command = [
            "qemu-storage-daemon",
            *("--object", f"throttle-group,id=limit,{limit.qemus()}"),
            *("--object", "iothread,id=worker"),
            *("--blockdev", f"file,node-name=file,filename={image},locking=off"),
            *("--blockdev", "throttle,node-name=disk,file=file,throttle-group=limit"),
            "--export",
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=worker,"
            f"addr.type=unix,addr.path={path}",
        ]
        with child(command, path) as running:
            yield Side("qemu-storage-daemon", path, tuple(running.pids()))


@contextmanager
def image() -> Iterator[Path]:
    """An image in tmpfs."""
    with Images(Path("/dev/shm"), Path("/dev/shm"), SPAN) as images:
        found = images.path(Store.TMPFS)
        assert found is not None
        yield found


def measure(limit: Limit, rounds: int, seconds: float) -> tuple[dict[str, list[Sample]], str]:
    """Samples of both sides in turn, and why one is missing, or ""."""
    missing = ""
    found: dict[str, list[Sample]] = {}
    with ExitStack() as stack:
        disk = stack.enter_context(image())
        sides = [stack.enter_context(ours(disk, limit))]
        try:
            sides.append(stack.enter_context(qemus(disk, limit)))
        except (Missing, OSError) as error:
            missing = str(error)
        for number in range(rounds):
            for side in sides if number % 2 == 0 else sides[::-1]:
                found.setdefault(side.name, []).append(side.run(limit, seconds))
    return found, missing


def show(limit: Limit, found: dict[str, list[Sample]]) -> None:
    """A line for each side."""
    for name, samples in found.items():
        kept, p99, cpu, burst = (
            statistics.median(getattr(sample, of) for sample in samples)
            for of in ("kept", "p99_ms", "cpu", "burst_s")
        )
        at_once = f", the burst within {burst:5.2f} s" if limit.burst else ""
        print(
            f"{limit!s:>30}, {name:22} {kept:7.1%} of the limit, p99 {p99:7.2f} ms, "
            f"{cpu:6.1%} of a CPU{at_once}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.limits", description=__doc__)
    parser.add_argument("--iops", type=int, nargs="*", default=[1000, 20000], help="(1000 20000)")
    parser.add_argument("--mib", type=int, nargs="*", default=[100], help="MiB a second (100)")
    parser.add_argument("--burst", type=int, default=4, help="seconds' worth of the last one (4)")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a sample (1)")
    parser.add_argument("--fio", action="store_true", help="with fio, in a guest")
    options = parser.parse_args(arguments)
    limits = [Limit(iops=iops) for iops in options.iops]
    limits += [Limit(bytes=mib * MIB) for mib in options.mib]
    if options.burst and options.iops:
        limits.append(Limit(iops=options.iops[0], burst=options.burst * options.iops[0]))
    for limit in limits:
        if options.fio:
            from tests.bench import limits_fio

            try:
                show(limit, limits_fio.measure(limit, options.rounds, options.seconds))
            except Missing as error:
                print(f"not measured: {error}")
            continue
        found, missing = measure(limit, options.rounds, options.seconds)
        show(limit, found)
        if missing:
            print(f"not measured: qemu-storage-daemon: {missing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
