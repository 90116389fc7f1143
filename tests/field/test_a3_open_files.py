"""Limits of open files: raised where that is allowed, named where it is not, lived with later."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.field.events import status
from tests.field.running import (
    DISK,
    VUPROC,
    await_made,
    run_to_end,
    started,
    stop,
    wait_until,
    write_file,
)
from tests.open_files import listeners, open_files
from vuproc.errors import ProtocolError
from vuproc.fd import Fd
from vuproc.open_files import needed
from vuproc.testing.block import Block
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.guest import Guest

QUEUES = 16


def limited(soft: int, hard: int) -> list[str]:
    """What goes before a command that is to have these limits."""
    return ["sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh"]


def write_wide(folder: Path) -> Path:
    """Many queues of one worker: it is the master's limit that matters here."""
    device = {**DISK, "queues": QUEUES}
    return write_file(folder, device=device, workers=[list(range(QUEUES))])


def serves(path: Path, queues: int = 1) -> None:
    with Guest(path, queues=queues) as guest:
        for queue in range(queues):
            Block(guest).read(0, 512, queue=queue)


def test_a3_the_soft_limit_is_raised_for_all_queues(tmp_path: Path) -> None:
    file, path = write_wide(tmp_path), tmp_path / "disk.sock"
    command = [*limited(64, needed(QUEUES)), *VUPROC, "run", "--supervised", file]
    with started(command) as process:
        await_made(path, process)
        # As many as are held in an upgrade are within the limit, too.
        upgraded = run_to_end([*VUPROC, "upgrade", path])
        assert (upgraded.returncode, upgraded.stderr) == (0, "")
        serves(path, QUEUES)
        code, said = stop(process)
        assert code == 0 and "Errno" not in said, said


def test_a3_too_low_a_hard_limit_is_named_before_anything_is_served(tmp_path: Path) -> None:
    for supervised in [], ["--supervised"]:
        command = [*limited(64, 64), *VUPROC, "run", *supervised, write_wide(tmp_path)]
        done = run_to_end(command)
        assert done.returncode == 1
        assert f"{needed(QUEUES)} open files for 16 queues wanted, 64 are allowed" in done.stderr
        assert "ulimit -Hn" in done.stderr
        assert os.listdir(tmp_path) == ["disk.yaml"]


def are_locked_in(pid: int, workers: int) -> bool:
    """So many workers have locked themselves in, as far as their master knows."""
    return listeners(pid) == workers


def fewer_files(pid: int, count: int) -> bool:
    return open_files(pid) < count


@contextmanager
def room_for(pid: int, count: int) -> Iterator[None]:
    """Let a process open `count` more files for a while."""
    there = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = [number for number in range(len(there) + count + 1) if number not in there]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[count], before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a3_a_message_that_finds_no_room_costs_the_connection_alone(tmp_path: Path) -> None:
    file, path = write_file(tmp_path), tmp_path / "disk.sock"
    with started([*VUPROC, "run", file]) as process:
        await_made(path, process)
        wait_until(partial(are_locked_in, process.pid, 2), process)
        # No room for its descriptor, and then none to ask the kernel what that is.
        for room in (0, 1):
            with Guest(path) as guest:
                Block(guest).read(0, 512)
                used = open_files(process.pid)
                with room_for(process.pid, room):
                    with Fd(os.eventfd(0)) as call, pytest.raises(ProtocolError):
                        guest.front_end.request("SET_VRING_CALL", fds=[call], value=0)
            serves(path)
            assert status(path)["pid"] == process.pid
            wait_until(partial(fewer_files, process.pid, used), process)
        code, said = stop(process)
        assert code == 0
        assert "open files" in said, said
        assert "ResourceWarning" not in said


def test_a3_a_front_end_that_finds_no_room_is_turned_away(tmp_path: Path) -> None:
    file, path = write_file(tmp_path), tmp_path / "disk.sock"
    with started([*VUPROC, "run", file]) as process:
        await_made(path, process)
        # The one that serves, and the one in waiting.
        wait_until(partial(are_locked_in, process.pid, 2), process)
        settled = open_files(process.pid) + 1
        for room in range(4):
            wait_until(partial(fewer_files, process.pid, settled), process)
            with room_for(process.pid, room), FrontEnd(path) as front_end:
                with pytest.raises(ProtocolError):
                    front_end.request("GET_FEATURES")
            serves(path)
        assert stop(process)[0] == 0
