"""Limits of a device and of its queues: no more passes than they say, and all of it in the end."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vuproc import Device, Request
from vuproc.devices.blk import Blk
from vuproc.ops import admin
from vuproc.testing.errors import ServeFailed
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job
from vuproc.testing.serve import Served, serve

BLOCK = 4096
BOUND_S = 30.0
SPAN = 1 << 22
IOPRIO_GET = {"x86_64": 252, "aarch64": 31}[platform.machine()]


class Slow(Device):
    """By tasks of asyncio."""

    device_id = 2

    async def handle(self, request: Request) -> None:
        request.write(bytes(1))


class Together(Blk):
    """A disk of which one worker serves all queues."""

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [tuple(range(self.num_queues()))]


@contextmanager
def disk(queues: int = 1, **options: Any) -> Iterator[tuple[Served, Guest]]:
    with serve(
        {"type": "blk", "ram": SPAN, "queues": queues, "queue_size": 1024, **options}
    ) as served:
        with served.guest(queues=queues, queue_size=1024, memory=64 << 20) as guest:
            yield served, guest


def run(guest: Guest, count: int, queue: int = 0, depth: int = 32) -> float:
    """So many reads of a block; the seconds that they took."""
    began = time.monotonic()
    done = guest.load(queue, Job(count=count, depth=depth, span=SPAN, stall_s=BOUND_S))
    assert done.completed == count and not done.failed
    return time.monotonic() - began


@pytest.mark.parametrize("engine", ["auto", "sync", "python"])
def test_no_more_requests_pass_than_the_limit_says(engine: str) -> None:
    with disk(engine=engine, limits={"iops": 1000, "iops_burst": 100}) as (_, guest):
        assert 100 + 1000 * run(guest, 600) >= 600


def test_no_more_bytes_pass_than_the_limit_says() -> None:
    """What one turn takes beyond is owed, and waited for."""
    rate, burst = 1 << 20, 1 << 17
    with disk(limits={"bytes": rate, "bytes_burst": burst}) as (_, guest):
        count = 150
        took = run(guest, count)
        assert (count - 16) * BLOCK <= burst + rate * took


def test_queues_share_the_limit_of_their_device() -> None:
    with disk(2, limits={"iops": 1000, "iops_burst": 10}) as (_, guest):
        began = time.monotonic()
        requests = [
            guest.submit(queue, [bytes(16)], [BLOCK + 1]) for queue in (0, 1) for _ in range(200)
        ]
        for request in requests:
            guest.wait(request, BOUND_S)
        assert 10 + 1000 * (time.monotonic() - began) >= 400


def test_each_queue_has_a_limit_of_its_own() -> None:
    """One that has used its own up is not in another's way."""
    with disk(2, queue_limits={"iops": 1, "iops_burst": 50}) as (_, guest):
        for queue in 0, 1:
            assert run(guest, 50, queue) < BOUND_S
        waiting = guest.submit(0, [bytes(16)], [BLOCK + 1])
        assert guest.wait(waiting, BOUND_S)


def test_a_worker_that_waits_uses_no_cpu_and_obeys() -> None:
    with disk(limits={"iops": 1, "iops_burst": 1}) as (served, guest):
        run(guest, 1)
        worker = admin.ask(served.socket, admin.Request("status"))["queues"][0]["pid"]
        pending = [guest.submit(0, [bytes(16)], [BLOCK + 1]) for _ in range(8)]
        guest.wait(pending[0], BOUND_S)
        before = ticks(worker)
        guest.wait(pending[1], BOUND_S)
        assert ticks(worker) - before <= 5  # of the hundred that a second has
        # What waits is not in flight.
        assert guest.stop_queue(0) == 3
        guest.start_queue(0)  # a ring of its own
        run(guest, 1)


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_reload_lifts_a_limit_at_once() -> None:
    with disk(limits={"iops": 1, "iops_burst": 1}) as (served, guest):
        run(guest, 1)
        pending = [guest.submit(0, [bytes(16)], [BLOCK + 1]) for _ in range(200)]
        file = served.socket.with_name("device.yaml")
        written = file.read_text(encoding="utf-8")
        assert '"iops": 1,' in written
        file.write_text(written.replace('"iops": 1,', '"iops": 100000,'), encoding="utf-8")
        (line,) = served.reload()
        assert "device.limits" in line
        for request in pending:
            guest.wait(request, BOUND_S)


def test_a_killed_worker_s_successor_keeps_to_what_is_left() -> None:
    with disk(limits={"iops": 200, "iops_burst": 100}) as (served, guest):
        began = time.monotonic()
        run(guest, 100)
        os.kill(admin.ask(served.socket, admin.Request("status"))["queues"][0]["pid"], 9)
        run(guest, 100)
        # A request that the dead one had begun is counted once more at most.
        assert 100 + 200 * (time.monotonic() - began) + 32 >= 200


def test_a_device_of_coroutines_is_limited_too() -> None:
    with (
        serve(Slow, queue_size=1024, limits={"iops": 500, "iops_burst": 50}) as served,
        served.guest(queue_size=1024) as guest,
    ):
        began = time.monotonic()
        requests = [guest.submit(0, [bytes(16)], [16]) for _ in range(200)]
        for request in requests:
            guest.wait(request, BOUND_S)
        assert 50 + 500 * (time.monotonic() - began) >= 200


@pytest.mark.parametrize("engine", ["auto", "python"])
def test_queues_of_one_worker_get_their_turns(engine: str) -> None:
    """A queue with a backlog that never ends is not in the way of another."""
    options: dict[str, Any] = {"ram": SPAN, "engine": engine, "queues": 2}
    with serve(Together, **options) as served:
        with served.guest(queues=2, memory=64 << 20) as guest:
            end = threading.Event()

            def flood() -> int:
                rounds = 0
                while not end.is_set():
                    run(guest, 2000, 0, depth=64)
                    rounds += 1
                return rounds

            with ThreadPoolExecutor() as threads:
                flooding = threads.submit(flood)
                try:
                    for _ in range(20):
                        run(guest, 50, 1, depth=1)
                finally:
                    end.set()
                assert flooding.result(BOUND_S) > 0


@pytest.mark.parametrize(
    ("limits", "wrong"),
    [
        ({"iops_burst": 5}, "iops_burst is that of iops"),
        ({"bytes_burst": 5}, "bytes_burst is that of bytes"),
        ({"iops": 0}, ">= 1"),
        ({"speed": 1}, "speed"),
    ],
)
def test_other_limits_are_wrong_in_their_line(limits: dict[str, int], wrong: str) -> None:
    with pytest.raises(ServeFailed, match=wrong):
        with disk(limits=limits):
            pass


def test_an_io_priority_is_that_of_the_worker() -> None:
    with disk(io_priority="best-effort/6") as (served, _):
        worker = admin.ask(served.socket, admin.Request("status"))["queues"][0]["pid"]
        libc = ctypes.CDLL(None)
        assert libc.syscall(IOPRIO_GET, 1, worker) == 2 << 13 | 6
