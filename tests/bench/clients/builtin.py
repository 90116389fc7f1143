"""The load generator that vuproc brings along: a virtqueue's driver in native code, here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tests.bench.backends import Running
from tests.bench.clients import Outcome, percentile_ns
from tests.bench.work import QUEUE_SIZE, Case
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job, Stats

STALL_S = 60.0
ROOM = 4 << 20
"""Bytes of guest memory for the rings, besides the buffers."""


class Builtin:
    """A thread of this process drives each queue."""

    name = "builtin"
    protocols: tuple[str, ...] = ("vhost-user-blk",)

    @contextmanager
    def connect(self, running: Running, case: Case) -> Iterator[_Driver]:
        memory = ROOM + case.queues * (case.depth * (case.work.block + 256) + 8192)
        memory = -(-memory // ROOM) * ROOM
        with (
            Guest(
                running.socket,
                queues=case.queues,
                queue_size=QUEUE_SIZE,
                memory=memory,
                timeout_s=STALL_S,
            ) as guest,
            ThreadPoolExecutor(case.queues) as threads,
        ):
            yield _Driver(guest, threads, case)


class _Driver:
    def __init__(self, guest: Guest, threads: ThreadPoolExecutor, case: Case) -> None:
        self._guest = guest
        self._threads = threads
        self._case = case

    def pids(self) -> list[int]:
        return []

    def run(self, count: int) -> Outcome:
        jobs = [self._job(queue, count) for queue in range(self._case.queues)]
        if len(jobs) == 1:
            return _outcome([self._guest.load(0, jobs[0])])
        return _outcome(list(self._threads.map(self._guest.load, range(len(jobs)), jobs)))

    def _job(self, queue: int, count: int) -> Job:
        work, part = self._case.work, self._case.span
        more: dict[str, Any] = {}
        if work.sequential:
            # A part of its own for each queue.
            part = part // self._case.queues // work.block * work.block
            more = {"start": queue * part, "sequential": True}
        return Job(
            count=count,
            depth=self._case.depth,
            block_size=work.block,
            span=part,
            read_percent=0 if work.writes else 100,
            seed=queue + 1,
            poll=self._case.polls,
            stall_s=STALL_S,
            **more,
        )


def _outcome(parts: list[Stats]) -> Outcome:
    latency = tuple(map(sum, zip(*(part.latency for part in parts), strict=True)))
    return Outcome(
        sum(part.completed for part in parts),
        sum(part.failed for part in parts),
        max(part.seconds for part in parts),
        percentile_ns(latency, 50),
        percentile_ns(latency, 99),
    )
