"""The end of `vuproc run` that is asked for twice: at once, in order, and with nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.field.events import status, wait_until
from tests.pool.scripted import Scripted
from vuproc import Device, Request
from vuproc.pool.process import STOP_DEADLINE
from vuproc.signals import ECHO_S
from vuproc.testing.serve import START_TIMEOUT, Served, serve

BOUND_S = 20.0
_RUN = [sys.executable, "-m", "vuproc", "run"]


class SlowStart(Device):
    """Says that it begins to set up, and does not come to an end."""

    device_id = 42

    def setup(self, queue: int) -> None:
        self.log.info("setting up")
        signal.pause()

    def handle(self, request: Request) -> None:
        raise NotImplementedError


def wait_in_service(served: Served, queues: int) -> None:
    """Until each queue's device has a request in its hands."""

    def serves() -> bool:
        found = status(served)["queues"][:queues]
        return all(queue["in_service"] is not None for queue in found)

    wait_until(serves, "a request in service on each queue")


def end_impatiently(served: Served, number: signal.Signals) -> float:
    """Send the signal again and again until the process has ended; seconds that took."""
    began = time.monotonic()
    while time.monotonic() - began < BOUND_S:
        os.kill(served.pid, number)
        try:
            assert served._process.wait(ECHO_S / 2) == 0
            return time.monotonic() - began
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("it does not end")


@pytest.mark.parametrize(
    ("number", "arguments"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGINT, ("--supervised",))],
    ids=["SIGINT", "SIGTERM", "supervised"],
)
def test_a9_a_second_signal_ends_the_drain_at_once_and_in_order(
    tmp_path: Path, number: signal.Signals, arguments: tuple[str, ...]
) -> None:
    with serve(Scripted, arguments=arguments, queues=2) as served:
        with served.guest(queues=2) as guest:
            for queue in range(2):
                guest.submit(queue, [f"stall {tmp_path / 'count'}".encode()], [64])
            wait_in_service(served, 2)
            # A drain that waits for both takes two deadlines.
            assert end_impatiently(served, number) < 2 * STOP_DEADLINE
            assert guest.front_end.closed_by_peer()
        assert sorted(os.listdir(served.socket.parent)) == ["device.yaml"]


def test_a9_one_signal_that_comes_twice_is_one(tmp_path: Path) -> None:
    """As from timeout(1), or from a terminal to keeper and master."""
    with serve(Scripted) as served, served.guest() as guest:
        token = guest.submit(0, [b"nap 0.5"], [64])
        wait_in_service(served, 1)
        os.kill(served.pid, signal.SIGINT)
        os.kill(served.pid, signal.SIGTERM)
        assert served.wait(BOUND_S) == 0
        guest.wait(token)
        assert not [line for line in served.lines if "killed" in line]


def test_a9_a_device_that_does_not_come_up_ends_with_the_first_signal(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(
        f'{{"socket": "./device.sock", "device": {{"type": "{Path(__file__)}:SlowStart"}}}}'
    )
    served = Served([*_RUN, str(path)], tmp_path / "device.sock")
    try:
        served.wait_for_line("setting up", START_TIMEOUT)
        os.kill(served.pid, signal.SIGINT)
        assert served.wait(BOUND_S) == 0
        assert sorted(os.listdir(tmp_path)) == ["device.yaml"]
    finally:
        served.end()
