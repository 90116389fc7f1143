"""As many rings as the protocol can tell apart, with no more open files than are asked for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from tests.field.events import status
from tests.field.running import DISK, VUPROC, await_made, started, stop, wait_until, write_file
from tests.field.test_a3_open_files import limited
from tests.open_files import open_files
from vuproc.open_files import needed
from vuproc.options import MAX_QUEUES
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest

LONG = bool(os.environ.get("VUPROC_LONG"))
RINGS_A_WORKER = 32
RING_SIZE = 4
SECTOR = 512

pytestmark = pytest.mark.timeout(1800 if LONG else 600)


@contextmanager
def served(folder: Path, workers: Sequence[Sequence[int]], **more: Any) -> Iterator[Popen[str]]:
    """A disk with all these queues, in a process that may open just what it says it needs."""
    device = {**DISK, "queues": MAX_QUEUES}
    file = write_file(folder, device=device, workers=workers, **more)
    allowed = limited(64, needed(MAX_QUEUES))
    with started([*allowed, *VUPROC, "run", "--supervised", file]) as process:
        await_made(folder / "disk.sock", process)
        yield process
        code, said = stop(process)
        assert code == 0 and "Errno" not in said and "ERROR" not in said, said


def in_groups(size: int) -> list[list[int]]:
    return [list(range(first, first + size)) for first in range(0, MAX_QUEUES, size)]


def use(guest: Guest, content: int) -> None:
    """Every ring, one after the other: what one has written, its neighbour reads."""
    disk, last = Block(guest), MAX_QUEUES - 1
    for queue in guest.queues:
        disk.write(queue, bytes([content ^ queue]) * SECTOR, queue=queue)
    for queue in guest.queues:
        assert disk.read(queue, SECTOR, queue=last - queue) == bytes([content ^ queue]) * SECTOR


@pytest.mark.parametrize("inband", [False, True] if LONG else [False])
def test_256_rings_run_stop_and_outlive_their_workers_and_their_master(
    tmp_path: Path, inband: bool
) -> None:
    groups = in_groups(1) if LONG else in_groups(RINGS_A_WORKER)
    path = tmp_path / "disk.sock"
    with served(tmp_path, groups, inband_notifications=inband):
        said = status(path)
        idle = open_files(int(said["pid"]))
        with Guest(path, queues=MAX_QUEUES, queue_size=RING_SIZE, inband=inband) as guest:
            use(guest, 0)
            os.kill(int(said["queues"][MAX_QUEUES - 1]["pid"]), signal.SIGKILL)
            use(guest, 1)
            os.kill(int(said["pid"]), signal.SIGKILL)
            use(guest, 2)
            assert [guest.stop_queue(queue) for queue in guest.queues] == [6] * MAX_QUEUES
        wait_until(lambda: open_files(int(status(path)["pid"])) <= idle)
