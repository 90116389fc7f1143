"""A supervised device is stopped at the very moment at which it has no master, or a new one."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest

from tests.field.events import status
from tests.field.running import VUPROC, await_made, started, stop, wait_until, write_file
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
DELAYS_S = [0.02 * number for number in range(40)] if LONG else [0.0, 0.1, 0.4]
"""From the death of the master to the signal: before, while and after another comes up."""


@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_a10_a_stop_after_the_master_s_death_leaves_nothing(tmp_path: Path, delay_s: float) -> None:
    """What leaves nothing in /dev/shm, nor a process, is looked after for every test."""
    file, path = write_file(tmp_path), tmp_path / "disk.sock"
    with started([*VUPROC, "run", "--supervised", file]) as process:
        await_made(path, process)
        with Guest(path) as guest:
            Block(guest).write(0, b"x" * 512)
            os.kill(status(path)["pid"], signal.SIGKILL)
            select.select([], [], [], delay_s)
            code, said = stop(process)
            assert code == 0, said
            assert guest.front_end.closed_by_peer()
    assert os.listdir(tmp_path) == ["disk.yaml"], said


def test_a10_a_master_that_is_killed_in_its_stop_leaves_nothing(tmp_path: Path) -> None:
    file, path = write_file(tmp_path), tmp_path / "disk.sock"
    with started([*VUPROC, "run", "--supervised", file]) as process:
        await_made(path, process)
        pid = status(path)["pid"]
        # It cannot act on what it is told before it is killed.
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: "T (stopped)" in Path(f"/proc/{pid}/status").read_text(), process)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: has_pending(pid, signal.SIGTERM), process)
        os.kill(pid, signal.SIGKILL)
        code, said = stop(process)
        assert code == 0, said
    assert os.listdir(tmp_path) == ["disk.yaml"], said


def has_pending(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (pending,) = [line.split()[1] for line in lines if line.startswith("ShdPnd")]
    return bool(int(pending, 16) >> (number - 1) & 1)
