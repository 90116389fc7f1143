"""Worker processes under a real master: hooks, failing device code, death and replacement."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from pathlib import Path

import pytest

from tests.pool.scripted import Scripted, WrongType
from vuproc.shm.counters import QueueCounters
from vuproc.shm.segment import PREFIX, Segment
from vuproc.spec.vhost_user import VRING_STATE, FrontendRequest
from vuproc.spec.virtio import Status
from vuproc.testing.errors import Refused, ServeFailed
from vuproc.testing.guest import Guest
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import serve
from vuproc.vhost_user.wire import encode
from vuproc.workers.main import _blame

BOUND_S = 30.0


def say(guest: Guest, text: str, queue: int = 0) -> str:
    """One scripted request, and its answer."""
    done = guest.do(queue, [text.encode()], [64], timeout_s=BOUND_S)
    return done.content[: done.written].decode()


def hooks(lines: list[str]) -> list[str]:
    return [line.partition("hook ")[2] for line in lines if "hook " in line]


def test_hooks_are_called_in_their_order(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Scripted)
    with served.guest() as guest:
        guest.front_end.set_config(2, b"XY")
        guest.stop_queue(0)
        guest.set_status(0)
    served.wait_for_line("disconnected")
    served.stop()
    called = hooks(served.lines)
    assert called[0] == "setup 0"
    assert re.fullmatch(r"features_acked 0x\w+", called[1])
    assert called[2:] == [
        "ring_started 0",
        "config_written 2 XY",
        "ring_stopped 0",
        "reset",  # the driver's
        "reset",  # the end of the session
        "reset",  # the end of the worker
        "teardown",
    ]


def test_a_config_write_that_the_device_refuses_fails_and_is_not_read_back(
    vuproc_device: ServeDevice,
) -> None:
    with vuproc_device(Scripted).guest() as guest:
        with pytest.raises(Refused):
            guest.front_end.set_config(0, b"bad!")
        assert guest.front_end.get_config(0, 8) == b"config--"
        guest.front_end.set_config(0, b"good")
        assert guest.front_end.get_config(0, 8) == b"goodig--"
        assert say(guest, "echo still here") == "still here"


def test_a_config_write_does_not_outlive_the_front_end(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Scripted)
    with served.guest() as guest:
        guest.front_end.set_config(0, b"mine")
        assert guest.front_end.get_config(0, 8) == b"mineig--"
    with served.guest() as guest:
        assert guest.front_end.get_config(0, 8) == b"config--"


def test_an_exception_fails_the_request_and_names_the_method(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Scripted)
    with served.guest() as guest:
        done = guest.do(0, [b"raise missing part"], [64])
        assert done.written == 0
        assert say(guest, "echo on") == "on"
    line = served.wait_for_line("LookupError: missing part")
    assert "Scripted.handle" in line and "queue 0" in line


def test_a_wrong_return_type_fails_the_request_and_is_named(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(WrongType)
    with served.guest() as guest:
        assert guest.do(0, [b"?"], [8]).written == 0
        assert guest.do(0, [b"?"], [8]).written == 0
    line = served.wait_for_line("WrongType.handle")
    assert "TypeError" in line


def test_an_exception_in_a_watch_callback_is_logged_and_ends_nothing(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(Scripted)
    with served.guest() as guest:
        say(guest, "badwatch")
        assert "ArithmeticError: in a callback" in served.wait_for_line("fails: ArithmeticError")
        assert say(guest, "echo on") == "on"


def test_one_queue_may_finish_the_requests_of_another(vuproc_device: ServeDevice) -> None:
    # Queue 0 has had its turn by then, and nothing else wakes the worker.
    with vuproc_device(Scripted, queues=2, shared_worker=True).guest(queues=2) as guest:
        kept = guest.submit(0, [b"keep"], [64])
        assert say(guest, "echo kept", 0) == "kept"
        assert say(guest, "drop", 1) == "dropped"
        assert guest.wait(kept, BOUND_S).content[:4] == b"kept"


def test_a_command_does_not_wait_for_all_that_is_queued(vuproc_device: ServeDevice) -> None:
    # All of them would take longer than a worker may take for an answer.
    served = vuproc_device(Scripted)
    with served.guest() as guest:
        pid = say(guest, "pid")
        naps = [guest.submit(0, [b"nap 0.1"], [8]) for _ in range(40)]
        guest.wait(naps[0], BOUND_S)
        done = guest.stop_queue(0)
        assert 2 <= done < 40
        guest.start_queue(0)
        assert say(guest, "pid") == pid


def test_a_deferred_request_is_completed_from_a_watch_callback(
    vuproc_device: ServeDevice, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with vuproc_device(Scripted).guest() as guest:
        held = guest.submit(0, [f"hold {fifo}".encode()], [64])
        assert say(guest, "echo overtakes") == "overtakes"
        fifo.write_bytes(b"go")
        assert guest.wait(held, BOUND_S).content[:8] == b"released"


def test_deferred_requests_may_finish_out_of_order(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Scripted).guest() as guest:
        kept = [guest.submit(0, [b"keep"], [64]) for _ in range(3)]
        assert say(guest, "drop") == "dropped"
        for token in kept:
            assert guest.wait(token).content[:4] == b"kept"


def test_a29_get_vring_base_waits_for_a_deferred_request(
    vuproc_device: ServeDevice, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with vuproc_device(Scripted).guest() as guest:
        held = guest.submit(0, [f"hold {fifo}".encode()], [64])
        say(guest, "echo fetched after it")
        guest.front_end.send(
            encode(FrontendRequest.GET_VRING_BASE, VRING_STATE.pack(index=0, num=0))
        )
        fifo.write_bytes(b"go")
        assert VRING_STATE.unpack(guest.front_end.receive().payload)["num"] == 2
        assert guest.wait(held).content[:8] == b"released"


def test_a_request_that_never_ends_does_not_hold_up_get_vring_base_for_ever(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(Scripted, queues=2)
    with served.guest(queues=2) as guest:
        guest.submit(0, [b"keep"], [64])
        say(guest, "echo fetched after it")
        assert guest.stop_queue(0) <= 2
        assert say(guest, "echo unharmed", queue=1) == "unharmed"
    served.wait_for_line("no answer for")


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_worker_that_dies_is_named_and_replaced(
    vuproc_device: ServeDevice, tmp_path: Path, name: str
) -> None:
    served = vuproc_device(Scripted, queues=2, once=str(tmp_path / "once"))
    with served.guest(queues=2) as guest:
        pid, other = say(guest, "pid"), say(guest, "pid", queue=1)
        assert say(guest, f"die {name}") == "alive"
        assert say(guest, "pid") != pid
        assert say(guest, "pid", queue=1) == other
    line = served.wait_for_line("starting another")
    assert f"queue 0: worker {pid} ended (killed by {name})" in line


def test_a_native_crash_costs_one_worker(vuproc_device: ServeDevice, tmp_path: Path) -> None:
    served = vuproc_device(Scripted, once=str(tmp_path / "once"))
    with served.guest() as guest:
        assert say(guest, "crash") == "alive"
    served.wait_for_line("killed by SIGSEGV")


def test_an_idle_worker_that_is_killed_is_replaced(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Scripted)
    with served.guest() as guest:
        for count in range(3):
            pid = int(say(guest, "pid"))
            os.kill(pid, signal.SIGKILL)
            served.wait_for_line(f"worker {pid} ended (killed by SIGKILL)")
            assert int(say(guest, "pid")) != pid, count


def test_d18_a_control_message_to_a_hung_worker_is_answered(
    vuproc_device: ServeDevice, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    served = vuproc_device(Scripted, once=str(once))
    with served.guest() as guest:
        pid = say(guest, "pid")
        hung = guest.submit(0, [b"hang"], [64])
        await_file(once)
        guest.enable_queue(0, False)
        guest.enable_queue(0, True)
        assert guest.wait(hung, BOUND_S).content[:5] == b"awake"
    line = served.wait_for_line(f"worker {pid} ended")
    assert re.search(r"no answer for \d(\.\d{1,3})? s\b", line)


def test_workers_that_share_state_share_a_process(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Scripted, queues=2, shared_worker=True).guest(queues=2) as guest:
        assert say(guest, "pid") == say(guest, "pid", queue=1)


def test_a_device_reset_of_a_shared_worker_that_hangs_stops_every_ring(
    vuproc_device: ServeDevice, tmp_path: Path
) -> None:
    options = {"queues": 2, "shared_worker": True, "once": str(tmp_path / "once")}
    with vuproc_device(Scripted, **options).guest(queues=2) as guest:
        guest.submit(1, [b"hang"], [64])
        await_file(tmp_path / "once")
        guest.set_status(0)
        assert guest.status() == 0
    with vuproc_device(Scripted, **options).guest(queues=2) as guest:
        assert say(guest, "echo fresh", queue=1) == "fresh"


def test_a_device_that_cannot_be_set_up_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ServeFailed, match="RuntimeError: no such hardware"):
        with serve(Scripted, broken_setup=True):
            pass


def test_counters_outlive_the_worker_and_go_with_the_master(vuproc_device: ServeDevice) -> None:
    served = vuproc_device(Scripted)
    segment = segment_of(served.pid)
    with served.guest() as guest:
        counters = QueueCounters(segment, 0)
        for _ in range(5):
            say(guest, "echo five")
        pid = int(say(guest, "pid"))
        os.kill(pid, signal.SIGKILL)
        served.wait_for_line(f"worker {pid} ended")
        assert say(guest, "echo six") == "six"
        snapshot = counters.snapshot()
        assert snapshot.requests == 7
        assert snapshot.kicks >= 1
        assert snapshot.calls >= 1
        assert sum(snapshot.latency) == 7
        counters.release()
        segment.close()
    served.stop()
    with pytest.raises(FileNotFoundError):
        Segment.attach(segment.name)


def test_an_idle_worker_does_not_wake_up(vuproc_device: ServeDevice) -> None:
    with vuproc_device(Scripted).guest() as guest:
        pid = int(say(guest, "pid"))
        pidfd = os.pidfd_open(pid)
        try:
            before = _switches(pid)
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            assert poller.poll(400) == []
            # The one that went to sleep after the last request may not have been counted yet.
            assert _switches(pid) - before <= 2
        finally:
            os.close(pidfd)


def test_needs_reset_is_not_shown_for_a_worker_that_was_replaced(
    vuproc_device: ServeDevice,
) -> None:
    served = vuproc_device(Scripted)
    with served.guest() as guest:
        pid = int(say(guest, "pid"))
        os.kill(pid, signal.SIGKILL)
        served.wait_for_line(f"worker {pid} ended")
        assert not guest.status() & Status.NEEDS_RESET


def await_file(path: Path) -> None:
    """Until the device has made the file; a folder's changes are looked for every few ms."""
    deadline = time.monotonic() + BOUND_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not made"
        select.select([], [], [], 0.005)


def segment_of(pid: int) -> Segment:
    """The segment that process `pid` owns."""
    for entry in os.listdir("/dev/shm"):
        if f"/{entry}".startswith(PREFIX):
            try:
                segment = Segment.attach(f"/{entry}")
            except (OSError, ValueError):
                continue  # somebody else's, which is just being made or taken away
            if segment.owner == pid:
                return segment
            segment.close()
    raise AssertionError(f"process {pid} owns no segment")


def _switches(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]


def test_c9_an_exception_that_passes_a_library_has_the_place_of_the_devices_own_code() -> None:
    try:
        json.loads("no json")
    except ValueError as error:
        told = _blame(error)
    assert told.startswith(f"{__file__}:") and " in test_c9_" in told and "JSONDecodeError" in told
