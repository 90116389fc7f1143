"""Guests that write while the processes which serve their disk are killed, and notice nothing.

VUPROC_LONG=1 makes each load 30 s long.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.deaths import (
    BOUND_S,
    LOOK_S,
    MasterKiller,
    Upgrader,
    WorkerKiller,
    kill_all,
    meanwhile,
)
from tests.guest.load import (
    BEGINS,
    ENDED,
    LAGGING,
    LONG,
    QUEUES,
    check,
    in_long_form,
    new_disk,
    packed,
    qemu,
    uml,
)
from vuproc.ops.admin import Request, ask
from vuproc.testing import serve
from vuproc.testing.errors import ServeFailed
from vuproc.testing.serve import Served
from vuproc.testing.vms.linux import LinuxGuest, Report

LOAD_S = 30 if LONG else 5
"""Seconds of load in the guest."""
RESTARTS_LOAD_S = 30 if LONG else 8
"""The same where each start and reconnection takes two."""
RESTARTS = 1000 if LONG else 4
"""At most; as many as the load has time for."""
SOME_REQUESTS = 32
SUPERVISED = ("--supervised",)

Boot = Callable[..., LinuxGuest]

pytestmark = pytest.mark.timeout(300)


def each(*engines: tuple[Boot, str]) -> pytest.MarkDecorator:
    """These guests, each with the engine of its disk."""
    names = [f"{boot.__name__}-{engine}" for boot, engine in engines]
    return pytest.mark.parametrize(("boot", "engine"), engines, ids=names)


# Every death with every kind of ring, and with a disk of each kind: not with all pairs of them.
@each(
    (uml, "io_uring"),
    (packed, LAGGING),
    *in_long_form((uml, LAGGING), (qemu, LAGGING), (qemu, "sync"), (packed, "io_uring")),
)
def test_a_guest_notices_nothing_of_workers_that_are_killed(
    tmp_path: Path, boot: Boot, engine: str
) -> None:
    image, device = new_disk(tmp_path, QUEUES[boot], engine)
    with serve(device) as served, boot(served.socket, LOAD_S) as guest:
        killer = WorkerKiller(served.socket)
        guest.wait_for(BEGINS)
        with meanwhile(killer):
            guest.wait_for(ENDED)
        report = guest.finish()
        shown = ask(served.socket, Request("status"))["queues"]
    for queue in shown:
        kills = killer.kills[queue["queue"]]
        busy = killer.in_service[queue["queue"]]
        print(f"queue {queue['queue']}: {kills} kills, {busy} in a request of {queue['requests']}")
        assert queue["restarts"] == kills > 0
    assert not [line for line in served.lines if "ERROR" in line]
    check(report, image, boot)


@each(
    (qemu, LAGGING),
    (packed, "io_uring"),
    *in_long_form((uml, LAGGING), (qemu, "io_uring"), (packed, LAGGING)),
)
def test_a_guest_notices_nothing_of_masters_that_are_killed(
    tmp_path: Path, boot: Boot, engine: str
) -> None:
    image, device = new_disk(tmp_path, QUEUES[boot], engine)
    with serve(device, arguments=SUPERVISED) as served, boot(served.socket, LOAD_S) as guest:
        killer = MasterKiller(served.socket)
        guest.wait_for(BEGINS)
        with meanwhile(killer):
            guest.wait_for(ENDED)
        report = guest.finish()
    print(f"{killer.kills} masters killed, the slowest successor took {killer.slowest_s:.1f} s")
    assert killer.kills > 0
    one_session(served)
    check(report, image, boot)


@each((uml, "sync"), *in_long_form((qemu, LAGGING)))
def test_a_guest_notices_nothing_of_upgrades(tmp_path: Path, boot: Boot, engine: str) -> None:
    image, device = new_disk(tmp_path, QUEUES[boot], engine)
    with serve(device, arguments=SUPERVISED) as served, boot(served.socket, LOAD_S) as guest:
        upgrader = Upgrader(served.socket)
        guest.wait_for(BEGINS)
        with meanwhile(upgrader):
            guest.wait_for(ENDED)
        report = guest.finish()
    print(f"{upgrader.upgrades} upgrades, the slowest took {upgrader.slowest_s:.1f} s")
    assert upgrader.upgrades > 0
    one_session(served)
    check(report, image, boot)


def one_session(served: Served) -> None:
    """The front-end was never disconnected, and nothing went wrong."""
    assert len([line for line in served.lines if "front-end connected" in line]) == 1, served.lines
    assert not [line for line in served.lines if "ERROR" in line]


@pytest.mark.parametrize("boot", [packed, *in_long_form(qemu)])
def test_a_guest_notices_nothing_of_a_device_that_is_killed_and_started_again(
    tmp_path: Path, boot: Boot
) -> None:
    """Master and workers at once; QEMU reconnects and hands the in-flight records back."""
    image, device = new_disk(tmp_path, QUEUES[boot])
    socket, device_file = tmp_path / "disk.sock", tmp_path / "disk.yaml"
    device_file.write_text(json.dumps({"socket": str(socket), "device": device}))
    deaths = 0
    with contextlib.ExitStack() as stack:
        guest: LinuxGuest | None = None
        report: Report | None = None
        while report is None:
            with mortal(device_file) as served:
                if guest is None:
                    guest = boot(socket, RESTARTS_LOAD_S, reconnect_s=1)
                    stack.enter_context(guest)
                    guest.wait_for(BEGINS)
                if deaths < RESTARTS and works(socket, guest):
                    kill_all(served.pid)
                    deaths += 1
                else:
                    report = guest.finish()
    print(f"{deaths} deaths of all processes")
    assert deaths > 0
    check(report, image, boot)


@contextlib.contextmanager
def mortal(device_file: Path) -> Iterator[Served]:
    """A served device which ends in order, or by SIGKILL."""
    try:
        with serve(device_file) as served:
            yield served
    except ServeFailed as failed:
        if "exit code -9" not in str(failed):
            raise
    assert not [line for line in served.lines if "ERROR" in line]


def works(socket: Path, guest: LinuxGuest) -> bool:
    """True once each queue has done some work and one is in the middle of a request; False if the
    load is over before.
    """
    deadline = time.monotonic() + BOUND_S
    never = threading.Event()
    while True:
        queues = ask(socket, Request("status"), BOUND_S)["queues"]
        worked = all(queue["requests"] >= SOME_REQUESTS for queue in queues)
        if worked and any(queue["in_service"] is not None for queue in queues):
            return True
        if guest.said(ENDED):
            return False
        assert time.monotonic() < deadline, queues
        never.wait(LOOK_S)
