"""Scrapes of devices that are served: what they say is what the driver has seen."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.field.events import status
from tests.ops.scraping import Page, scrape, went_back
from vuproc import Device, Request
from vuproc.ops.admin import Request as AdminRequest
from vuproc.ops.admin import ask
from vuproc.ops.metric_table import METRICS
from vuproc.testing import DirtyBitmap
from vuproc.testing.block import Block
from vuproc.testing.job import Job
from vuproc.testing.serve import Served, serve

BOUND_S = 30.0
QUEUES = 2
BLOCK = 4096
REQUESTS = 500
DISK = {"type": "blk", "ram": "64MiB"}
MEMORY = 64 << 20


def job(read_percent: int = 100, count: int = REQUESTS) -> Job:
    return Job(count=count, start=0, span=1 << 20, read_percent=read_percent, stall_s=BOUND_S)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_another(served: Served, started: float) -> bool:
    """Whether another master than the one of then is there."""
    return bool(status(served.socket)["started"] != started)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_every_metric_is_there_and_the_numbers_are_the_drivers(tmp_path: Path) -> None:
    place = tmp_path / "m"
    file = {"metrics": f"unix:{place}"}
    with serve(DISK, queues=QUEUES, file=file) as served:
        with served.guest(queues=QUEUES, memory=MEMORY) as guest:
            reads, writes = guest.load(0, job(100)), guest.load(1, job(0))
            # The last batch is timed after the driver has seen it.
            timed = "vuproc_request_duration_seconds_count"
            until(lambda: Page(scrape(place)).value(timed) == QUEUES * REQUESTS)
            page = Page(scrape(place))
        assert {metric.name: metric.type for metric in METRICS} == {
            name: family.type for name, family in page.families.items()
        }
        for queue in range(QUEUES):
            requests = page.value("vuproc_requests_total", queue=queue)
            assert requests == REQUESTS == (reads, writes)[queue].completed
            assert requests == page.value("vuproc_request_duration_seconds_count", queue=queue)
            assert 0 < page.value("vuproc_request_duration_seconds_sum", queue=queue) < BOUND_S
            assert page.value("vuproc_calls_total", queue=queue) >= 1
            assert page.value("vuproc_kicks_total", queue=queue) >= 1
            assert page.value("vuproc_errors_total", queue=queue) == 0
            state = {"queue": queue, "vuproc_queue_state": "running"}
            assert page.value("vuproc_queue_state", **state) == 1
            assert page.value("vuproc_in_flight_requests", queue=queue) == 0
        # 16 bytes of header each, one byte of status, and the blocks in one of the two directions.
        assert page.value("vuproc_read_bytes_total", queue=0) == 16 * REQUESTS
        assert page.value("vuproc_written_bytes_total", queue=0) == (BLOCK + 1) * REQUESTS
        assert page.value("vuproc_read_bytes_total", queue=1) == (BLOCK + 16) * REQUESTS
        assert page.value("vuproc_written_bytes_total", queue=1) == REQUESTS
        assert page.value("vuproc_frontend_connected") == 1
        assert page.value("vuproc_frontend_connections_total") == 1
        assert page.value("vuproc_device_info", type="blk") == 1
        assert page.value("vuproc_file_size_bytes", file="ram") == 64 << 20
        until(lambda: Page(scrape(place)).value("vuproc_frontend_connected") == 0)
    assert not place.exists()


def test_an_image_fills_as_it_is_written_to(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.touch()
    os.truncate(image, 16 << 20)
    place = tmp_path / "m"
    disk = {"type": "blk", "image": str(image)}
    with serve(disk, file={"metrics": f"unix:{place}"}) as served:
        with served.guest() as guest:
            before = Page(scrape(place)).value("vuproc_file_allocated_bytes", file="image")
            Block(guest).write(0, b"x" * 65536)
            after = Page(scrape(place)).value("vuproc_file_allocated_bytes", file="image")
    assert before == 0 and 65536 <= after < 16 << 20


def test_workers_die_and_no_counter_goes_back(tmp_path: Path) -> None:
    place = tmp_path / "m"
    with serve(DISK, queues=QUEUES, file={"metrics": f"unix:{place}"}) as served:
        with served.guest(queues=QUEUES, memory=MEMORY) as guest:
            pages = [Page(scrape(place))]
            for _ in range(3):
                guest.load(0, job())
                served.kill_worker(0)
                guest.load(0, job())
                pages.append(Page(scrape(place)))
            for before, after in itertools.pairwise(pages):
                assert went_back(before, after) == []
            last = pages[-1]
            assert last.value("vuproc_requests_total", queue=0) == 6 * REQUESTS
            stalls = "vuproc_recovery_stall_seconds_count"
            until(lambda: Page(scrape(place)).value(stalls, queue=0) == 3)
            until(lambda: Page(scrape(place)).value("vuproc_worker_restarts_total", queue=0) == 3)
            last = Page(scrape(place))
            assert last.value("vuproc_worker_restarts_total", queue=1) == 0
            total = last.value("vuproc_recovery_stall_seconds_sum", queue=0)
            assert 0 < last.value("vuproc_recovery_last_stall_seconds", queue=0) <= total


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["killed", "upgraded"])
@pytest.mark.parametrize("where", ["unix", "tcp"])
def test_masters_take_over_and_no_counter_goes_back(tmp_path: Path, how: str, where: str) -> None:
    place: Path | int = tmp_path / "m" if where == "unix" else free_port()
    address = f"unix:{place}" if where == "unix" else f"127.0.0.1:{place}"
    file = {"metrics": address}
    with serve(DISK, queues=QUEUES, file=file, arguments=("--supervised",)) as served:
        with served.guest(queues=QUEUES, memory=MEMORY) as guest:
            guest.load(0, job())
            pages = [Page(scrape(place))]
            for round in range(1, 4):
                started = status(served.socket)["started"]
                pid = status(served.socket)["pid"]
                number = signal.SIGKILL if how == "killed" else signal.SIGUSR2
                os.kill(pid, number)
                guest.load(0, job())
                until(partial(is_another, served, started))
                # What is asked in between waits in the socket, which is the same.
                pages.append(Page(scrape(place)))
                assert went_back(pages[-2], pages[-1]) == []
                assert pages[-1].value("vuproc_requests_total", queue=0) == (1 + round) * REQUESTS
                assert pages[-1].value("vuproc_master_takeovers_total") == round
                assert pages[-1].value("vuproc_frontend_connections_total") == 1
            assert status(served.socket)["queues"][0]["counters"]["requests"] == 4 * REQUESTS


def test_a_scrape_goes_on_while_workers_and_masters_die(tmp_path: Path) -> None:
    """Scraped all the time: every page that comes is whole, and none has less than the last."""
    place = tmp_path / "m"
    file = {"metrics": f"unix:{place}"}
    done = threading.Event()
    pages: list[Page] = []

    def scrape_on() -> None:
        while not done.is_set():
            try:
                pages.append(Page(scrape(place)))
            except (OSError, AssertionError):
                done.wait(0.01)  # the master has died over it

    with serve(DISK, queues=QUEUES, file=file, arguments=("--supervised",)) as served:
        with served.guest(queues=QUEUES, memory=MEMORY) as guest:
            thread = threading.Thread(target=scrape_on)
            thread.start()
            try:
                for _ in range(2):
                    guest.load(0, job())
                    served.kill_worker(0)
                    guest.load(0, job())
                    os.kill(status(served.socket)["pid"], signal.SIGKILL)
                    guest.load(0, job())
                seen = len(pages)
                until(lambda: len(pages) > seen)
            finally:
                done.set()
                thread.join(BOUND_S)
    for before, after in itertools.pairwise(pages):
        assert went_back(before, after) == []


class Slow(Device):
    """Serves nothing until it is told so."""

    device_id = 45

    def handle(self, request: Request) -> None:
        request.defer()


def test_what_is_in_flight_is_counted_and_grows_old(tmp_path: Path) -> None:
    place = tmp_path / "m"
    with serve(Slow, file={"metrics": f"unix:{place}"}) as served:
        with served.guest() as guest:
            for _ in range(3):
                guest.submit(out=[b"x" * 16])
            name = "vuproc_in_flight_requests"
            until(lambda: Page(scrape(place)).value(name, queue=0) == 3)
            age = "vuproc_in_flight_oldest_seconds"
            first = Page(scrape(place)).value(age, queue=0)
            until(lambda: Page(scrape(place)).value(age, queue=0) > first)
            served.kill_worker(0)  # they are in flight still, with the next one
            until(lambda: Page(scrape(place)).value("vuproc_worker_restarts_total") == 1)
            page = Page(scrape(place))
            assert page.value(name, queue=0) == 3 and page.value(age, queue=0) > first


class Poisoned(Device):
    """Dies over each request."""

    device_id = 45

    def handle(self, request: Request) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


def test_a_request_that_costs_workers_is_an_error_of_its_kind(tmp_path: Path) -> None:
    place = tmp_path / "m"
    with serve(Poisoned, file={"metrics": f"unix:{place}"}) as served:
        with served.guest() as guest:
            guest.do(out=[b"x" * 16])
            until(lambda: Page(scrape(place)).value("vuproc_worker_restarts_total") == 3)
            page = Page(scrape(place))
            assert page.value("vuproc_errors_total", kind="skipped") == 1
            assert page.value("vuproc_errors_total") == 1
            assert page.value("vuproc_requests_total") == 1


def test_a_ring_that_breaks_is_an_error_of_its_kind(tmp_path: Path) -> None:
    place = tmp_path / "m"
    with serve(DISK, file={"metrics": f"unix:{place}"}) as served:
        with served.guest() as guest:
            queue = guest.queues[0]
            queue.split.offer_head(60_000)  # no descriptor of the table
            queue.split.publish()
            queue.kick()
            broken = {"vuproc_queue_state": "broken"}
            until(lambda: Page(scrape(place)).value("vuproc_queue_state", **broken) == 1)
            page = Page(scrape(place))
            assert page.value("vuproc_errors_total", kind="ring_broken") == 1
            assert page.value("vuproc_in_flight_requests") == 0


def test_a_migration_is_an_event_at_its_begin_and_its_end(tmp_path: Path) -> None:
    with serve(DISK) as served:
        with served.guest(memory=MEMORY) as guest, DirtyBitmap(2 * MEMORY) as log:
            guest.log_writes(log)
            until(lambda: migrations(served) == [True])
            guest.log_writes(None)
            until(lambda: migrations(served) == [True, False])


def migrations(served: Served) -> list[bool]:
    found = ask(served.socket, AdminRequest("events"))["events"]
    return [event["logging"] for event in found if event["event"] == "migration"]
