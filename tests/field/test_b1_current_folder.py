"""Nothing is imported from the folder in which somebody happens to be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.field.events import wait_until
from vuproc.ops.admin import AdminError, Request, ask
from vuproc.testing.guest import Guest

ROOT = Path(__file__).parents[2]

HIDING = ("select", "random", "types", "signal", "socket", "struct", "msgspec", "multiprocess")
"""Modules that processes of ours import, and a folder may have under the same name."""

BLK = "{type: blk, ram: 1MiB}"
SCRIPT = "{type: './device.py:Helped'}"
"""A device with a module of its own beside it, which is to be found."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with files that must not be imported; each import of one leaves a mark."""
    for name in HIDING:
        (tmp_path / f"{name}.py").write_text(_mark(tmp_path, name))
    (tmp_path / "vuproc").mkdir()
    (tmp_path / "vuproc" / "__init__.py").write_text(_mark(tmp_path, "vuproc"))
    (tmp_path / "helper.py").write_text("ANSWER = b'helped'\n")
    (tmp_path / "device.py").write_text(
        "import helper, random, socket\n"
        "from vuproc import Device\n"
        "class Helped(Device):\n"
        "    device_id = 42\n"
        "    def handle(self, request):\n"
        "        request.write(helper.ANSWER)\n"
    )
    return tmp_path


def _mark(folder: Path, name: str) -> str:
    mark = str(folder / "imported")
    return f"open({mark!r}, 'a').write({name!r} + '\\n')\nraise ImportError({name!r})\n"


@contextmanager
def started_in(folder: Path, device: str) -> Iterator[Path]:
    """`vuproc run` in a folder, without what `python -m` adds of itself: as the command does it."""
    (folder / "d.yaml").write_text(f"socket: ./d.sock\ndevice: {device}\n")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "vuproc", "run", "d.yaml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: standby(folder / "d.sock", process) is not None, "the device")
        yield folder / "d.sock"
        assert process.poll() is None, "vuproc run has ended"
    finally:
        process.terminate()
        assert process.wait(30.0) == 0
    assert not (folder / "imported").exists(), (folder / "imported").read_text()


def standby(path: Path, process: subprocess.Popen[bytes]) -> int | None:
    """Its process, once the device is there."""
    assert process.poll() is None, "vuproc run has ended"
    try:
        found: int | None = ask(path, Request("status"))["standby"]
    except AdminError:
        return None
    return found


@pytest.mark.parametrize("device", [BLK, SCRIPT], ids=["blk", "script"])
def test_b1_no_process_imports_from_the_current_folder(folder: Path, device: str) -> None:
    with started_in(folder, device) as path:
        before = ask(path, Request("status"))
        os.kill(before["queues"][0]["pid"], signal.SIGKILL)
        os.kill(before["standby"], signal.SIGKILL)
        wait_until(
            lambda: {before["standby"], before["queues"][0]["pid"], None}.isdisjoint(
                {(now := ask(path, Request("status")))["standby"], now["queues"][0]["pid"]}
            ),
            "new workers",
        )
        if device is SCRIPT:
            with Guest(path) as guest:
                assert guest.do(in_=[8]).content[:6] == b"helped"
