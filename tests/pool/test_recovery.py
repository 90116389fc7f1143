"""What a worker's death costs: nothing, unless the request itself kills; and what operators see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.crash.soak import soak
from tests.pool.scripted import Dropping, Failing, Hopeless, Scripted
from tests.pool.test_pool import await_file
from vuproc.ops.admin import AdminError, Request, ask
from vuproc.spec.virtio import Status
from vuproc.testing.guest import Guest
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import Served, serve

BOUND_S = 30.0
SEED = 4


def say(guest: Guest, text: str, queue: int = 0) -> str:
    done = guest.do(queue, [text.encode()], [64], timeout_s=BOUND_S)
    return done.content.decode()


def status(served: Served) -> dict[str, Any]:
    return ask(served.socket, Request("status"))


def test_requests_finished_out_of_order_are_neither_lost_nor_doubled(
    vuproc_device: ServeDevice,
) -> None:
    """One request is kept while later ones complete; then the worker dies."""
    served = vuproc_device(Scripted)
    with served.guest() as guest:
        kept = guest.submit(0, [b"keep"], [64])
        for count in range(5):
            assert say(guest, f"echo {count}") == str(count)
        pid = int(say(guest, "pid"))
        os.kill(pid, 9)
        served.wait_for_line(f"worker {pid} ended")
        assert say(guest, "drop") == "dropped"  # the new worker has the kept one, and only that
        assert guest.wait(kept, BOUND_S).content == b"kept"
        assert guest.queues[0].in_flight == 0


def test_a_new_ring_after_one_that_could_not_be_drained(
    vuproc_device: ServeDevice, tmp_path: Path
) -> None:
    """A guest that is reset over its first request begins at 0 again, and with nothing in flight.

    What was kept for the old ring is of no concern to the new one.
    """
    served = vuproc_device(Scripted)
    with served.guest() as guest:
        guest.submit(0, [f"stall {tmp_path / 'count'}".encode()], [64])
        await_file(tmp_path / "count")
        assert guest.stop_queue(0) == 0
        guest.start_queue(0)
        assert say(guest, "echo anew") == "anew"
        assert guest.queues[0].in_flight == 0
    served.wait_for_line("what was kept for it is forgotten")


def test_d11_a_request_that_kills_its_worker_is_failed_after_three_attempts(
    vuproc_device: ServeDevice, tmp_path: Path
) -> None:
    served = vuproc_device(Scripted, queues=2)
    with served.guest(queues=2) as guest:
        assert say(guest, f"poison {tmp_path / 'count'}") == "abandoned 3"
        assert (tmp_path / "count").read_bytes() == b"xxx"
        assert say(guest, "echo lives on") == "lives on"
    line = served.wait_for_line("3 workers died over it")
    assert "queue 0" in line and "head" in line and b"poison".hex() in line
    assert status(served)["queues"][0]["restarts"] == 3
    assert status(served)["queues"][1]["restarts"] == 0


def test_d13_a_stuck_worker_is_replaced_and_the_request_that_held_it_is_named(
    tmp_path: Path,
) -> None:
    # Long enough that a worker which only waits for a CPU is not taken for one that is stuck.
    with serve(Scripted, file={"stall_timeout": 1.0}) as served, served.guest() as guest:
        assert say(guest, f"stall {tmp_path / 'count'}") == "abandoned 3"
        assert say(guest, "echo on") == "on"
        line = served.wait_for_line("no progress for 1 s")
        assert "queue 0" in line and "head" in line


def test_a_slow_worker_that_gets_on_is_left_alone() -> None:
    """At work for longer than the timeout, but at no one request."""
    with serve(Scripted, file={"stall_timeout": 1.5}) as served, served.guest() as guest:
        pid = say(guest, "pid")
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            say(guest, "echo busy")
        assert say(guest, "pid") == pid


@pytest.mark.parametrize(
    ("device", "answer"), [(Scripted, "done"), (Dropping, ""), (Failing, "abandoned 1")]
)
def test_d07_what_a_dead_worker_had_begun_is_run_again_or_not_as_the_device_says(
    vuproc_device: ServeDevice, tmp_path: Path, device: type[Scripted], answer: str
) -> None:
    count = tmp_path / "count"
    served = vuproc_device(device, once=str(tmp_path / "once"))
    with served.guest() as guest:
        assert say(guest, f"count_and_die {count}") == answer
        assert count.read_bytes() == (b"xx" if device is Scripted else b"x")
        assert say(guest, "echo on") == "on"


def test_d12_the_breaker_opens_and_an_operator_closes_it(
    vuproc_device: ServeDevice, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    served = vuproc_device(Hopeless, queues=2, once=str(trap))
    with served.guest(queues=2) as guest:
        say(guest, "echo fine")
        trap.touch()
        os.kill(int(say(guest, "pid")), 9)
        assert guest.queues[0].err_bell.wait(BOUND_S)
        served.wait_for_line("queue 0: broken: 5 deaths")
        assert guest.status() & Status.NEEDS_RESET
        shown = status(served)["queues"]
        assert shown[0]["state"] == "broken"
        assert "SIGSEGV" in shown[0]["cause"]
        assert shown[1]["state"] == "running"
        assert say(guest, "echo unharmed", queue=1) == "unharmed"

        waiting = guest.submit(0, [b"echo at last"], [64])
        trap.unlink()
        ask(served.socket, Request("queue-restart", 0))
        assert guest.wait(waiting, BOUND_S).content == b"at last"
        assert status(served)["queues"][0]["state"] == "running"
        assert not guest.status() & Status.NEEDS_RESET


def test_d12_a_reset_by_the_driver_closes_the_breaker(
    vuproc_device: ServeDevice, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    served = vuproc_device(Hopeless, once=str(trap))
    with served.guest() as guest:
        trap.touch()
        os.kill(int(say(guest, "pid")), 9)
        served.wait_for_line("queue 0: broken")
        trap.unlink()
        guest.set_status(0)
        guest.front_end.set_features(guest.front_end.features)
        guest.start_queue(0)
        assert say(guest, "echo again") == "again"


def test_a_queue_that_is_not_broken_cannot_be_restarted(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Scripted)
    with pytest.raises(AdminError, match="queue 0 is not broken"):
        ask(served.socket, Request("queue-restart", 0))
    with pytest.raises(AdminError, match="no queue 7"):
        ask(served.socket, Request("queue-restart", 7))


def test_the_command_line_shows_the_status(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Scripted, queues=2)
    command = [sys.executable, "-m", "vuproc", "status", str(served.socket)]
    table = subprocess.check_output(command, text=True, timeout=BOUND_S)
    assert "no front-end" in table
    answer = json.loads(subprocess.check_output([*command, "--json"], timeout=BOUND_S))
    assert [queue["state"] for queue in answer["queues"]] == ["stopped", "stopped"]
    assert answer["pid"] == served.pid


def test_the_admin_socket_is_the_owners_alone_and_goes_with_the_master(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(Scripted)
    path = Path(f"{served.socket}.admin")
    assert path.stat().st_mode & 0o777 == 0o600
    served.stop()
    assert not path.exists()


def test_a_standby_that_dies_is_replaced(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Scripted)
    first = status(served)["standby"]
    os.kill(first, 9)
    served.wait_for_line("standby: worker")
    with served.guest() as guest:
        os.kill(int(say(guest, "pid")), 9)
        assert say(guest, "echo on") == "on"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_soak_verified_writes_while_workers_are_killed(packed: bool) -> None:
    """50 kills in the middle of verified I/O: nothing lost, doubled or wrong, nothing leaked."""
    result = soak(kills=50, queues=4, seed=SEED, packed=packed)
    print(result)
    assert result.kills >= 50
    assert not result.faults
    assert result.executions.total() == result.requests
