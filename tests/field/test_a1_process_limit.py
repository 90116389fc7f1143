"""The system has no process to give: that costs a queue its worker, for as long as it lasts."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from tests.conformance.processes import family
from tests.field.events import queue_status, say, status, wait_until
from tests.pool.scripted import Scripted
from tests.process_limit import no_forks
from vuproc.pool.slot import BREAKER_DEATHS
from vuproc.testing.job import Job
from vuproc.testing.serve import Served, serve

REQUESTS = 256


@pytest.mark.parametrize("arguments", [(), ("--supervised",)], ids=["alone", "supervised"])
def test_a1_no_process_to_be_had_costs_one_queue(arguments: tuple[str, ...]) -> None:
    with serve(Scripted, queues=2, arguments=arguments) as served:
        with served.guest(queues=2) as guest:
            other = int(say(guest, "pid", 0))
            master = status(served)["pid"]
            forkserver = family(served.pid)[other].parent
            with no_forks(forkserver) as lift:
                for _ in range(2):  # the standby can take the place of the first
                    os.kill(int(say(guest, "pid", 1)), signal.SIGKILL)
                kept = guest.submit(1, [b"echo back again"], [64])
                wait_until(lambda: queue_status(served, 1)["state"] == "waiting", "waiting")
                assert "fork: Resource temporarily" in queue_status(served, 1)["cause"]
                # The other queue goes on, and so does the session.
                assert int(say(guest, "pid", 0)) == other
                guest.front_end.set_config(0, b"good")
                assert guest.front_end.get_config(0, 8) == b"goodig--"
                served.wait_for_line("queue 1: no worker process: fork: ")
                lift()
                assert guest.wait(kept, 30.0).content[:10] == b"back again"
            served.wait_for_line("queue 1: served again")
            assert queue_status(served, 1)["state"] == "running"
            assert status(served)["pid"] == master
        assert len([line for line in served.lines if "queue 1: no worker process" in line]) == 1


def test_a1_a_ring_that_is_started_without_a_worker_begins_when_there_is_one() -> None:
    with serve(Scripted, queues=2) as served:
        with served.guest(queues=2) as guest:
            forkserver = family(served.pid)[int(say(guest, "pid", 0))].parent
            with no_forks(forkserver) as lift:
                guest.stop_queue(1)
                for _ in range(2):
                    pid = queue_status(served, 1)["pid"]
                    os.kill(pid, signal.SIGKILL)
                    served.wait_for_line(f"worker {pid} ended")
                wait_until(lambda: queue_status(served, 1)["state"] == "waiting", "waiting")
                guest.start_queue(1)
                kept = guest.submit(1, [b"echo at last"], [64])
                assert say(guest, "echo on", 0) == "on"
                lift()
                assert guest.wait(kept, 30.0).content[:7] == b"at last"


def test_a1_a_keeper_tries_for_a_master_until_there_is_one() -> None:
    with serve(Scripted, arguments=("--supervised", "--no-standby")) as served:
        with served.guest() as guest:
            master = status(served)["pid"]
            with no_forks(served.pid) as lift:
                os.kill(master, signal.SIGKILL)
                served.wait_for_line("cannot start a master: fork: Resource temporarily")
                kept = guest.submit(0, [b"echo back again"], [64])
                lift()
                assert guest.wait(kept, 30.0).content[:10] == b"back again"
            assert status(served)["pid"] != master


def test_a1_a_forkserver_that_is_killed_is_replaced_with_its_workers() -> None:
    with serve(Scripted, queues=2) as served:
        with served.guest(queues=2) as guest:
            forkserver = family(served.pid)[int(say(guest, "pid", 0))].parent
            os.kill(forkserver, signal.SIGKILL)
            assert say(guest, "echo on", 0) == "on"
            assert say(guest, "echo on", 1) == "on"


def test_a1_a_forkserver_that_dies_again_and_again_breaks_no_idle_queue() -> None:
    with serve(Scripted, queues=2) as served, served.guest(queues=2) as guest:
        for _ in range(BREAKER_DEATHS):
            forkserver = family(served.pid)[int(queue_status(served, 1)["pid"])].parent
            os.kill(forkserver, signal.SIGKILL)
            assert say(guest, "echo on", 0) == "on"
            wait_until(partial(_has_another, served, forkserver), "another worker of queue 1")
        assert queue_status(served, 1)["state"] == "running"
        assert say(guest, "echo on", 1) == "on"


def test_a1_no_thread_to_be_had_costs_no_request_that_io_uring_has() -> None:
    """What may block, the kernel gives to threads of its own, which count as the worker's."""
    disk = {"type": "blk", "ram": "8MiB", "engine": "io_uring"}
    with serve(disk) as served, served.guest(memory=16 << 20) as guest:
        with no_forks(queue_status(served, 0)["pid"]):
            for percent in (0, 100):
                job = Job(
                    count=REQUESTS, span=1 << 20, read_percent=percent, sequential=True, pattern=5
                )
                stats = guest.load(0, job)
                assert (stats.completed, stats.failed, stats.corrupt) == (REQUESTS, 0, 0)


def _has_another(served: Served, forkserver: int) -> bool:
    pid = queue_status(served, 1)["pid"]
    return (
        pid is not None
        and pid in (found := family(served.pid))
        and (found[pid].parent != forkserver)
    )
