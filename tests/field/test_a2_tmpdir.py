"""The folder for temporary files is of no importance to a device that runs."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from tests.field.events import say, status, wait_until
from tests.pool.scripted import Scripted
from vuproc.testing.serve import serve


def test_a2_workers_are_replaced_when_the_folder_for_temporary_files_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tempfile.gettempdir()  # this process keeps its own
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with serve(Scripted) as served:
        assert list(folder.iterdir()) == []
        folder.rmdir()
        with served.guest() as guest:
            for _ in range(2):
                standby = status(served)["standby"]
                os.kill(int(say(guest, "pid")), signal.SIGKILL)
                assert int(say(guest, "pid")) == standby
                wait_until(lambda: status(served)["standby"] is not None, "another standby")
