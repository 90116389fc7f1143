"""The device's own code outside of requests may take its time, and holds nobody else up."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.field.events import queue_status, say, status, wait_for_lines
from tests.field.hooks import Hooked
from vuproc.testing.errors import Refused, ServeFailed
from vuproc.testing.serve import Served, serve


class Gate:
    """Where the slow hook waits, once it is armed."""

    def __init__(self, folder: Path) -> None:
        self.options: dict[str, Any] = {
            name: folder / name for name in ("gate", "armed", "entered")
        }
        os.mkfifo(self.options["gate"])
        self._open: list[int] = []

    def arm(self) -> None:
        self.options["armed"].touch()

    def wait_entered(self, count: int = 1) -> None:
        wait_for_lines(self.options["entered"], count)

    def open(self) -> None:
        """Let those go on that wait, and all that come."""
        self.options["armed"].unlink()
        self._open.append(os.open(self.options["gate"], os.O_RDWR))

    def close(self) -> None:
        for number in self._open:
            os.close(number)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.close()


@contextmanager
def hooked(
    gate: Gate, slow: str, hook_timeout: float = 30.0, stall_timeout: float = 30.0, **options: Any
) -> Iterator[Served]:
    keys = {"hook_timeout": hook_timeout, "stall_timeout": stall_timeout}
    with serve(Hooked, slow=slow, file=keys, **gate.options, **options) as served:
        yield served


def test_a11_a_worker_that_sets_up_for_long_holds_nobody_up(gate: Gate) -> None:
    with hooked(gate, "setup", queues=2) as served, served.guest(queues=2) as guest:
        gate.arm()
        os.kill(int(say(guest, queue=1)), signal.SIGKILL)
        gate.wait_entered()
        kept = guest.submit(1, [b"?"], [64])
        say(guest, queue=0)
        assert queue_status(served, 1)["state"] == "running"
        gate.open()
        assert guest.wait(kept, 30.0).written


@pytest.mark.parametrize("slow", ["ring_started", "config_written"])
def test_a11_a_message_waits_for_a_hook_and_the_status_does_not(gate: Gate, slow: str) -> None:
    with hooked(gate, slow) as served, served.guest() as guest:
        before = say(guest)
        gate.arm()
        messages = {
            "ring_started": lambda: (guest.stop_queue(0), guest.start_queue(0)),
            "config_written": lambda: guest.front_end.set_config(0, b"!"),
        }
        message = threading.Thread(target=messages[slow])
        message.start()
        gate.wait_entered()
        # Longer than a command may take that has no hook in it.
        message.join(2.2)
        assert message.is_alive()
        assert status(served)["connected"]
        gate.open()
        message.join(30.0)
        assert not message.is_alive()
        assert say(guest) == before


def test_a11_a_hook_that_takes_too_long_is_named(gate: Gate) -> None:
    with hooked(gate, "setup", hook_timeout=0.5) as served, served.guest() as guest:
        gate.arm()
        os.kill(int(say(guest)), signal.SIGKILL)
        kept = guest.submit(0, [b"?"], [64])
        gate.wait_entered(2)
        served.wait_for_line("no answer for 0.5 s")
        line = served.wait_for_line(" in setup").lstrip()
        assert line.startswith(f"{Path(__file__).with_name('hooks.py')}:")
        gate.options["armed"].unlink()
        assert guest.wait(kept, 30.0).written


def test_a11_a_death_inside_a_hook_is_not_its_successors(gate: Gate) -> None:
    gate.arm()
    with hooked(gate, "ring_started", 0.3, 0.2, then="die") as served, served.guest() as guest:
        pidfd = os.pidfd_open(int(say(guest)))
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            assert poller.poll(1000) == [], "an idle worker was taken for one in a hook"
        finally:
            os.close(pidfd)
        assert queue_status(served)["restarts"] == 1


def test_a11_a_queue_whose_setup_fails_costs_no_other(gate: Gate) -> None:
    with hooked(gate, "setup", queues=2, only=1, then="raise") as served:
        with served.guest(queues=2) as guest:
            other = say(guest, queue=0)
            gate.arm()
            os.kill(int(say(guest, queue=1)), signal.SIGKILL)
            for count in range(1, 4):
                guest.front_end.set_config(0, b"!")
                gate.wait_entered(count)
                assert say(guest, queue=0) == other
            served.wait_for_line("in _hook: RuntimeError: not just now")


def test_a11_a_front_end_that_leaves_during_a_setup_keeps_no_other_waiting(gate: Gate) -> None:
    with hooked(gate, "setup", hook_timeout=90.0) as served:
        with served.guest() as guest:
            gate.arm()
            os.kill(int(say(guest)), signal.SIGKILL)
            gate.wait_entered()
            gate.options["armed"].unlink()
        with served.guest() as guest:
            assert say(guest)


def test_a11_workers_import_side_by_side(tmp_path: Path) -> None:
    """Those of four queues and the standby; the master has imported before, for itself."""
    seen, gate = tmp_path / "seen", tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "slow.py").write_text(
        f"import os\n"
        f"from vuproc import Device\n"
        f"with open({str(seen)!r}, 'a') as file:\n"
        f"    file.write('import\\n')\n"
        f"if len(open({str(seen)!r}).readlines()) > 1:\n"
        f"    open({str(gate)!r}).close()\n"
        f"class Slow(Device):\n"
        f"    device_id = 42\n"
        f"    def handle(self, request): pass\n"
    )
    file = tmp_path / "slow.yaml"
    file.write_text("socket: ./slow.sock\ndevice: {type: './slow.py:Slow', queues: 4}\n")
    opened: list[int] = []

    def let_go_on() -> None:
        wait_for_lines(seen, 1 + 5)
        opened.append(os.open(gate, os.O_RDWR))

    helper = threading.Thread(target=let_go_on)
    helper.start()
    try:
        with serve(file):
            assert opened, "it came up before all of them had begun"
    finally:
        helper.join()
        for number in opened:
            os.close(number)


def test_a11_a_start_that_hangs_is_explained_and_ends_at_once(gate: Gate) -> None:
    gate.arm()
    with pytest.raises(ServeFailed) as failed, hooked(gate, "setup", 0.5, queues=4):
        pass
    text = str(failed.value)
    assert "no answer for 0.5 s (hook_timeout); it was at" in text
    assert f"{Path(__file__).with_name('hooks.py')}:" in text and " in setup" in text


def test_a11_a_hook_that_takes_too_long_twice_leaves_no_worker_out_of_step(gate: Gate) -> None:
    with hooked(gate, "ring_started", 0.3) as served, served.guest() as guest:
        guest.stop_queue(0)
        gate.arm()
        with pytest.raises(Refused):
            guest.start_queue(0)
        gate.wait_entered(2)
        gate.options["armed"].unlink()
        guest.start_queue(0)
        assert say(guest)
    assert not [line for line in served.lines if "answered command" in line]


def test_a11_the_status_is_asked_while_a_message_waits_for_a_replaced_worker(gate: Gate) -> None:
    """What the dead one had open is not polled under the numbers of the asker's connection."""
    with hooked(gate, "ring_started", queues=2) as served, served.guest(queues=2) as guest:
        guest.stop_queue(0)
        pid = queue_status(served)["pid"]
        gate.arm()
        message = threading.Thread(target=guest.start_queue, args=(0,))
        message.start()
        gate.wait_entered()
        os.kill(pid, signal.SIGKILL)
        gate.wait_entered(2)
        for _ in range(3):
            assert status(served)["connected"]
        gate.open()
        message.join(30.0)
        assert not message.is_alive()
        assert say(guest)
