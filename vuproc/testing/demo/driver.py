"""The first half: the driver that vuproc.testing has, on every queue at once."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from vuproc.spec.blk import SECTOR_SIZE
from vuproc.testing.block import Block
from vuproc.testing.demo.failure import DemoFailed
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job, Stats
from vuproc.testing.load import LoadGenerator
from vuproc.testing.serve import Served

BLOCK_SIZE = 4096
DEPTH = 32
MEASURED = 100_000
"""Requests a queue in the measured phase: a few seconds."""
CHUNK = 1 << 20
"""Bytes a request of the read for the checksum."""
REFRESH_S = 0.1
PATTERN = 0x5EED


@dataclass(frozen=True)
class Phase:
    """One job for each queue, under a name."""

    name: str
    jobs: Sequence[Job]


def drive(console: Console, served: Served, image: Path, queues: int) -> None:
    """Write, read back, measure and compare checksums. Raises DemoFailed."""
    size = image.stat().st_size
    stripe = size // queues // BLOCK_SIZE * BLOCK_SIZE
    starts = [queue * stripe for queue in range(queues)]
    blocks = stripe // BLOCK_SIZE

    def jobs(count: int, reads: int, *, sequential: bool, pattern: int | None) -> list[Job]:
        return [
            Job(
                count=count,
                depth=DEPTH,
                block_size=BLOCK_SIZE,
                start=start,
                span=stripe,
                read_percent=reads,
                sequential=sequential,
                pattern=pattern,
            )
            for start in starts
        ]

    phases = [
        Phase("write every block", jobs(blocks, 0, sequential=True, pattern=PATTERN)),
        Phase("read back and compare", jobs(blocks, 100, sequential=True, pattern=PATTERN)),
        Phase("random, 70 % reads", jobs(MEASURED, 70, sequential=False, pattern=PATTERN)),
    ]
    with served.guest(queues=queues, memory=64 << 20) as guest:
        block = Block(guest)
        serial = block.get_id()
        console.print(
            f"requests of {BLOCK_SIZE} bytes, {DEPTH} in flight on each queue of {serial}"
        )
        results = [run(console, guest, phase) for phase in phases]
        block.flush()
        console.print(summary(phases, results))
        show_workers(console, served)
        seen = hashlib.sha256()
        for place, at in enumerate(range(0, size, CHUNK)):
            length = min(CHUNK, size - at)
            seen.update(block.read(at // SECTOR_SIZE, length, queue=place % queues))
    held = hashlib.sha256(image.read_bytes())
    console.print(f"sha256 through the queues  {seen.hexdigest()}", soft_wrap=True)
    console.print(f"sha256 of the image file   {held.hexdigest()}", soft_wrap=True)
    if seen.digest() != held.digest():
        raise DemoFailed("the device and the image file differ")


def run(console: Console, guest: Guest, phase: Phase) -> list[Stats]:
    """Runs a phase on all queues, a thread for each, under a progress bar."""
    total = sum(job.count for job in phase.jobs)
    progress = Progress(
        TextColumn(f"{phase.name:<22}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        console=console,
        expand=True,
        refresh_per_second=1 / REFRESH_S,
    )
    made = [guest.queues[index].loader(job) for index, job in enumerate(phase.jobs)]
    generators = [generator for generator, _ in made]
    began = time.monotonic()
    with progress, ThreadPoolExecutor(len(made)) as pool:
        task = progress.add_task(phase.name, total=total, rate="")
        running = [pool.submit(generator.run) for generator in generators]
        try:
            while wait(running, REFRESH_S).not_done:
                done = sum(generator.completed for generator in generators)
                rate = f"{done / (time.monotonic() - began) / 1000:6.0f} k/s"
                progress.update(task, completed=done, rate=rate)
        except BaseException:
            stop(generators)
            raise
        stats = [each.result() for each in running]
        rate = f"{total / (time.monotonic() - began) / 1000:6.0f} k/s"
        progress.update(task, completed=total, rate=rate)
    for _, arena in made:
        arena.free()
    for index, each in enumerate(stats):
        if each.failed or each.corrupt:
            fault = f"{each.failed} requests failed, {each.corrupt} blocks differ"
            raise DemoFailed(f"{phase.name}, queue {index}: {fault}")
    return stats


def stop(generators: Sequence[LoadGenerator]) -> None:
    """Ends runs which nobody waits for any more."""
    for generator in generators:
        generator.stop()


def summary(phases: Sequence[Phase], results: Sequence[Sequence[Stats]]) -> Table:
    """What each phase reached: all queues' throughput together, latency over all."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("phase")
    for name in ("requests", "k/s", "MiB/s", "p50 µs", "p99 µs", "kicks", "calls"):
        table.add_column(name, justify="right")
    for phase, stats in zip(phases, results, strict=True):
        completed = sum(each.completed for each in stats)
        # The queues ran at the same time: the longest one's time is that of all.
        rate = completed / max(each.seconds for each in stats)
        table.add_row(
            phase.name,
            f"{completed:,}",
            f"{rate / 1000:.0f}",
            f"{rate * BLOCK_SIZE / (1 << 20):.0f}",
            f"{worst(stats, 50):.0f}",
            f"{worst(stats, 99):.0f}",
            f"{sum(each.kicks for each in stats):,}",
            f"{sum(each.calls for each in stats):,}",
        )
    return table


def worst(stats: Sequence[Stats], percent: float) -> float:
    """A percentile in microseconds, of the queue where it is highest."""
    return max(each.percentile_ns(percent) for each in stats) / 1000


def show_workers(console: Console, served: Served) -> None:
    """The processes that did it, which the master's fork server has made, and what each used."""
    ticks = os.sysconf("SC_CLK_TCK")
    workers = [worker for child in children(served.pid) for worker in children(child)]
    used = [processor_ticks(pid) / ticks for pid in (served.pid, *workers)]
    console.print(f"master   pid {served.pid}: {used[0]:.2f} s of processor time, none on the data")
    for pid, seconds in zip(workers, used[1:], strict=True):
        console.print(f"worker   pid {pid}: {seconds:.2f} s of processor time")


def children(pid: int) -> list[int]:
    """The process ids of a process's children."""
    listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for line in listed for child in line.split()]


def processor_ticks(pid: int) -> int:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
