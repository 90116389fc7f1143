"""Reads and writes that go on while something is done to a device, each block checked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vuproc.testing.guest import Guest
from vuproc.testing.job import Job


@contextmanager
def checked_io(
    guest: Guest,
    *,
    queues: int,
    apart: int,
    span: int,
    count: int,
    bound_s: float,
    explain: Callable[[], object] = lambda: "",
) -> Iterator[Callable[[], None]]:
    """Writes of `count` blocks and reads of them on every queue, over and over; what is given waits
    for two rounds more.

    Queue i has the `span` bytes at i times `apart`. `bound_s` is for a completion, and for those
    rounds. `explain` says what to show beside a failure.
    """
    done = threading.Event()
    failures: list[BaseException] = []
    rounds = [0] * queues

    def work(queue: int) -> None:
        try:
            while not done.is_set():
                for percent in (0, 100):
                    job = Job(
                        count=count,
                        start=queue * apart,
                        span=span,
                        pattern=7 + queue,
                        read_percent=percent,
                        sequential=True,
                        stall_s=bound_s,
                    )
                    stats = guest.load(queue, job)
                    assert (stats.completed, stats.failed, stats.corrupt) == (count, 0, 0), stats
                rounds[queue] += 1
        except BaseException as error:
            failures.append(error)

    def one_more() -> None:
        before, deadline = list(rounds), time.monotonic() + bound_s
        while any(now < then + 2 for now, then in zip(rounds, before, strict=True)):
            assert not failures, (failures, explain())
            assert time.monotonic() < deadline, "the driver waits"
            done.wait(0.01)

    threads = [threading.Thread(target=work, args=(queue,)) for queue in range(queues)]
    for thread in threads:
        thread.start()
    try:
        yield one_more
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures, (failures, explain())
