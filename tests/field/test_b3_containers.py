"""Containers that have /dev/shm in common, and nothing else: process ids mean nothing there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.field.events import status
from tests.field.running import (
    BOUND_S,
    VUPROC,
    await_made,
    children,
    descendants,
    ended,
    started,
    stop,
    write_file,
)
from vuproc.shm.segment import PREFIX, sweep

BOUND_TO = 'mount --bind "$1" /dev/shm && shift && exec "$@"'
MOUNTED = 'mount -t tmpfs none "$1" && cp "$2" "$1/disk.yaml" && shift 2 && exec "$@"'


def container(*options: str) -> list[str]:
    """What goes before a command that is to have namespaces of its own; skips if there are none."""
    command = ["unshare", "--pid", "--fork", "--kill-child", *options]
    if shutil.which("unshare") is None:
        pytest.skip("no command unshare")
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
    return command


def segment_of(pid: int) -> tuple[Path, int]:
    """Where the counters of a container's master are, and their inode."""
    (master,) = children(pid)
    for line in Path(f"/proc/{master}/maps").read_text().splitlines():
        _, _, name = line.partition("/dev/shm")
        if name.startswith(PREFIX):
            return Path(f"/dev/shm{name}"), int(line.split()[4])
    raise AssertionError("no segment is mapped")


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL the container with all that is in it."""
    pidfds = [os.pidfd_open(pid) for pid in descendants(process.pid)]
    process.kill()
    process.communicate(timeout=BOUND_S)
    gone = [ended(pidfd) for pidfd in pidfds]
    assert all(gone)


def test_b3_what_a_killed_container_leaves_is_replaced_by_the_next(tmp_path: Path) -> None:
    file, path = write_file(tmp_path), tmp_path / "disk.sock"
    # Both have this as theirs: any vuproc that starts would sweep the one that all tests have.
    shm = tmp_path / "shm"
    shm.mkdir()
    command = [*container("--mount"), "sh", "-c", BOUND_TO, "sh", shm, *VUPROC, "run", file]
    with started(command) as process:
        await_made(path, process)
        segment, inode = segment_of(process.pid)
        kill(process)
    left = shm / segment.name
    assert left.stat().st_ino == inode
    path.unlink()
    with left.open("rb"), started(command) as process:  # open, so that its number is not given anew
        await_made(path, process)
        assert status(path)["pid"] == 1
        again, other = segment_of(process.pid)
        assert again == segment and other != inode
        assert left.stat().st_ino == other
        kill(process)


def test_b3_two_containers_with_sockets_of_the_same_path_do_not_disturb_each_other(
    tmp_path: Path,
) -> None:
    file, inside = write_file(tmp_path), tmp_path / "inside"
    inside.mkdir()
    command = [*container("--mount"), "sh", "-c", MOUNTED, "sh", inside, file]
    command += [*VUPROC, "run", inside / "disk.yaml"]
    with started(command) as first, started(command) as second:
        for process in (first, second):
            assert process.stderr is not None
            assert "serving blk" in process.stderr.readline()
        for process in (first, second):
            segment, inode = segment_of(process.pid)
            assert segment.stat().st_ino == inode
        for process in (first, second):
            kill(process)
    sweep()


def test_b3_two_of_one_socket_are_noticed(tmp_path: Path) -> None:
    """In client mode there is no lock beside the socket, which is the VMM's."""
    socket = {"path": "./disk.sock", "mode": "client"}
    file = write_file(tmp_path, socket=socket)
    with started([*VUPROC, "run", file]) as first:
        assert first.stderr is not None
        while "serving" not in first.stderr.readline():
            assert first.poll() is None
        with started([*VUPROC, "run", file]) as second:
            _, said = second.communicate(timeout=BOUND_S)
            assert second.returncode == 1
            assert f"(process {first.pid} by its own count)" in said
        assert stop(first)[0] == 0
