"""The system has no process to give: that costs a queue its worker, for as long as it lasts."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conformance.processes import family
from tests.field.events import queue_status, say, status, wait_until
from tests.pool.scripted import Scripted
from vuproc.pool.slot import BREAKER_DEATHS
from vuproc.testing.serve import Served, serve

CONTROLLERS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
"""Where the limit of a control group can be had: version 1, then version 2."""


@contextmanager
def no_forks(pid: int) -> Iterator[Callable[[], object]]:
    """Let a process start no other; what is given lifts that."""
    if os.geteuid() != 0:
        _, hard = resource.prlimit(pid, resource.RLIMIT_NPROC, (0, resource.RLIM_INFINITY))
        yield partial(resource.prlimit, pid, resource.RLIMIT_NPROC, (hard, hard))
        return
    group = _limited_group()
    (group / "pids.max").write_text("1")
    (group / "cgroup.procs").write_text(str(pid))
    try:
        yield partial((group / "pids.max").write_text, "max")
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(left)
        group.rmdir()


def _limited_group() -> Path:
    for root in CONTROLLERS:
        group = root / f"vuproc-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / "pids.max").exists():
            return group
        group.rmdir()
    pytest.skip("root is bound by no process limit here: there is no pids control group")


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
    with serve(Scripted, arguments=("--supervised",)) as served:
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


def _has_another(served: Served, forkserver: int) -> bool:
    pid = queue_status(served, 1)["pid"]
    return (
        pid is not None
        and pid in (found := family(served.pid))
        and (found[pid].parent != forkserver)
    )
