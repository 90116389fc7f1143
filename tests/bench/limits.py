"""How well limits are kept, beside QEMU's own: `python -m tests.bench.limits`.

A disk in tmpfs with a limit, by vuproc (`limits`) and by qemu-storage-daemon (a throttle group), in
turn; the same driver keeps its requests in flight for some seconds. Of each: requests a second as a
share of the limit once its burst is used up, latency, and the CPU time of the side that waits.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

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
class Sample:
    """One run under a limit."""

    kept: float
    """Requests a second, as a share of the limit."""
    p99_ms: float
    cpu: float
    """Share of a CPU that the device's side took."""


@dataclass(frozen=True, slots=True)
class Side:
    """A limited disk: its socket and the processes behind it."""

    name: str
    socket: Path
    pids: tuple[int, ...]

    def run(self, iops: int, seconds: float) -> Sample:
        """Use up the burst, and then so many seconds' worth."""
        with Guest(self.socket, queue_size=QUEUE_SIZE, memory=SPAN) as guest:
            self._load(guest, max(DEPTH, iops // 5))
            before = sum(quiet.times(pid).ran for pid in self.pids)
            stats = self._load(guest, int(iops * seconds))
            spent = sum(quiet.times(pid).ran for pid in self.pids) - before
        took = stats.seconds
        return Sample(
            stats.completed / took / iops, stats.percentile_ns(99) / 1e6, spent / 1e9 / took
        )

    @staticmethod
    def _load(guest: Guest, count: int) -> Stats:
        stats = guest.load(0, Job(count=count, depth=DEPTH, span=SPAN, stall_s=STALL_S))
        if stats.failed:
            raise Missing(f"{stats.failed} requests failed")
        return stats


@contextmanager
def ours(image: Path, iops: int) -> Iterator[Side]:
    """vuproc's disk with its limit."""
    device = {"type": "blk", "image": str(image), "engine": "sync", "limits": {"iops": iops}}
    with serve(device) as served:
        worker = int(ask(served.socket, Request("status"))["queues"][0]["pid"])
        yield Side("vuproc", served.socket, (worker,))


@contextmanager
def qemus(image: Path, iops: int) -> Iterator[Side]:
    """qemu-storage-daemon's disk behind a throttle group. Raises Missing."""
    if shutil.which("qemu-storage-daemon") is None:
        raise Missing("there is no qemu-storage-daemon here")
    with tempfile.TemporaryDirectory(prefix="vuproc-bench-") as folder:
        path = Path(folder, "limited.sock")
        command = [
            "qemu-storage-daemon",
            *("--object", f"throttle-group,id=limit,x-iops-total={iops}"),
            *("--object", "iothread,id=worker"),
            *("--blockdev", f"file,node-name=file,filename={image},locking=off"),
            *("--blockdev", "throttle,node-name=disk,file=file,throttle-group=limit"),
            "--export",
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=worker,"
            f"addr.type=unix,addr.path={path}",
        ]
        with child(command, path) as running:
            yield Side("qemu-storage-daemon", path, tuple(running.pids()))


def measure(iops: int, rounds: int, seconds: float) -> tuple[dict[str, list[Sample]], str]:
    """Samples of both sides in turn, and why one is missing, or ""."""
    missing = ""
    found: dict[str, list[Sample]] = {}
    with ExitStack() as stack:
        images = stack.enter_context(Images(Path("/dev/shm"), Path("/dev/shm"), SPAN))
        image = images.path(Store.TMPFS)
        assert image is not None
        sides = [stack.enter_context(ours(image, iops))]
        try:
            sides.append(stack.enter_context(qemus(image, iops)))
        except (Missing, OSError) as error:
            missing = str(error)
        for number in range(rounds):
            for side in sides if number % 2 == 0 else sides[::-1]:
                found.setdefault(side.name, []).append(side.run(iops, seconds))
    return found, missing


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.limits", description=__doc__)
    parser.add_argument("--iops", type=int, nargs="*", default=[1000, 20000], help="(1000 20000)")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a sample (1)")
    options = parser.parse_args(arguments)
    for iops in options.iops:
        found, missing = measure(iops, options.rounds, options.seconds)
        for name, samples in found.items():
            kept, p99, cpu = (
                statistics.median(getattr(sample, of) for sample in samples)
                for of in ("kept", "p99_ms", "cpu")
            )
            print(
                f"{iops:>7} a second, {name:20} {kept:7.1%} of the limit, p99 {p99:7.2f} ms, "
                f"{cpu:6.1%} of a CPU"
            )
        if missing:
            print(f"not measured: qemu-storage-daemon: {missing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
