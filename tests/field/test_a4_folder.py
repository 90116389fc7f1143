"""The folder in which a device was started is removed; so is whatever depended on it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
from pathlib import Path

import pytest

import vuproc
from tests.field.events import status
from tests.field.running import (
    VUPROC,
    await_made,
    descendants,
    run_to_end,
    started,
    stop,
    wait_until,
    write_file,
)
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """One that stays, with the device file, and one to start in."""
    stays, goes = tmp_path / "stays", tmp_path / "goes"
    stays.mkdir()
    goes.mkdir()
    write_file(stays)
    return stays, goes


def serves(path: Path) -> None:
    with Guest(path, timeout_s=20) as guest:
        Block(guest).read(0, 512)


def upgrade(path: Path) -> None:
    done = run_to_end([*VUPROC, "upgrade", path])
    assert (done.returncode, done.stderr) == (0, "")


def test_a4_the_folder_of_the_start_may_go(folders: tuple[Path, Path]) -> None:
    stays, goes = folders
    words = ["run", "../stays/disk.yaml", "--socket", "../stays/other.sock", "--log-level", "error"]
    path = stays / "other.sock"
    with started([*VUPROC, *words, "--superv"], cwd=goes) as process:
        await_made(path, process)
        goes.rmdir()
        upgrade(path)
        serves(path)
        before = status(path)
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda: status(path)["pid"] != before["pid"])
        serves(path)
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(FileNotFoundError):  # one of the last program's
                assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert stop(process)[0] == 0
    assert os.listdir(stays) == ["disk.yaml"]


def test_a4_a_checkout_in_the_folder_of_the_start_is_found_again(
    folders: tuple[Path, Path],
) -> None:
    """Nothing but that folder has the code; a development install is out of sight by -S."""
    stays, goes = folders
    (goes / "vuproc").symlink_to(Path(vuproc.__file__).parent)
    libraries = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    alone = {**os.environ, "PYTHONPATH": os.pathsep.join(libraries)}
    python = [sys.executable, "-S"]
    if run_to_end([*python, "-c", "import vuproc"], cwd="/", env=alone).returncode == 0:
        pytest.skip("vuproc is installed for every program here")
    words = [*python, "-m", "vuproc", "run", "../stays/disk.yaml", "--supervised"]
    with started(words, cwd=goes, env=alone) as process:
        await_made(stays / "disk.sock", process)
        upgrade(stays / "disk.sock")
        serves(stays / "disk.sock")
        assert stop(process)[0] == 0


def test_a4_a_start_in_a_folder_that_is_gone(folders: tuple[Path, Path]) -> None:
    stays, goes = folders
    here = ["sh", "-c", 'cd "$1" && rmdir "$1" && shift && exec "$@"', "sh", goes]
    done = run_to_end([*here, *VUPROC, "check", "disk.yaml"])
    assert done.returncode == 2
    assert done.stderr.endswith("vuproc: the current folder was removed: cd to another one\n")
    goes.mkdir()
    with started([*here, *VUPROC, "run", stays / "disk.yaml"]) as process:
        await_made(stays / "disk.sock", process)
        serves(stays / "disk.sock")
        assert stop(process)[0] == 0
