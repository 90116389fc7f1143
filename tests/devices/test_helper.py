"""The helper of a device: when it begins, anew, and ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.devices import helped
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import Served, serve

BOUND_S = 30.0


def device_of(notes: Path, **options: Any) -> dict[str, Any]:
    return {"type": f"{helped.__file__}:Helped", "notes": str(notes), **options}


def await_lines(served: Served, count: int) -> None:
    deadline = time.monotonic() + BOUND_S
    while served.status().details["notes"]["lines"] != count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_ends_after_the_workers(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with serve(device_of(notes)) as served:
        await_lines(served, 1)
        helper = served.status().helper
        assert helper is not None
        os.kill(helper, 0)
    assert notes.read_text().split() == ["begins", "worker", "ends"]
    assert not Path(f"/proc/{helper}").exists()


def test_one_that_fails_or_is_killed_begins_anew(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with serve(device_of(notes, fails=2)) as served, served.guest() as guest:
        await_lines(served, 3)
        served.wait_for_line("run_helper: ValueError: as it was told to")
        helper = served.status().helper
        assert helper is not None
        os.kill(helper, signal.SIGKILL)
        await_lines(served, 4)
        assert served.status().helper not in (None, helper)
        assert guest.do(0, [b"x"]).written == 0
        assert served.status().queues[0].restarts == 0


@pytest.mark.timeout(120)
def test_a_master_that_follows_has_another(tmp_path: Path, vuproc_device: ServeDevice) -> None:
    notes = tmp_path / "notes"
    served = vuproc_device(device_of(notes), arguments=["--supervised"])
    with served.guest():
        await_lines(served, 1)
        before = served.status()
        os.kill(before.pid, signal.SIGKILL)
        await_lines(served, 2)
        assert served.status().helper != before.helper


def test_one_that_takes_too_long_at_the_end_is_killed(tmp_path: Path) -> None:
    with serve(device_of(tmp_path / "notes", never_ends=True)) as served:
        await_lines(served, 1)
    assert [line for line in served.lines if "was not done in 0.5 s, and killed" in line]
