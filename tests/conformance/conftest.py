"""The device under attack: a real `vuproc run` on a real socket, watched for what it keeps."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance import processes
from tests.conformance.checks import Rejects
from vuproc.testing.serve import Served, serve

BOUND_S, LOOK_S = 30.0, 0.005
CALM = 3
"""Looks in a row at which the standby waits: it sleeps for a moment before its rehearsal, too."""
DISK = {"type": "blk", "ram": "16MiB", "queues": 4, "queue_size": 256}


@dataclass(frozen=True)
class Footprint:
    """What a served device holds while a connection that has set up nothing is open.

    The reply to the connection's first message proves that the one before is wholly gone.
    """

    processes: dict[int, Counter[str]]

    @staticmethod
    def of(served: Served) -> Footprint:
        await_standby(served)
        with served.connect() as front_end:
            front_end.request("GET_FEATURES")
            members = processes.family(served.pid)
        return Footprint({pid: process.files for pid, process in members.items()})


def await_standby(served: Served) -> None:
    """Until there is a worker in waiting that has rehearsed: it has files of its own meanwhile."""
    deadline = time.monotonic() + BOUND_S
    calm = 0
    while calm < CALM:
        assert time.monotonic() < deadline, "the standby is not ready"
        standby = served.status().standby
        calm = calm + 1 if standby is not None and _waits(standby) else 0
        time.sleep(LOOK_S)


def _waits(pid: int) -> bool:
    """Whether a process sleeps, with nothing of a rehearsal open."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0]
        files = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return state == "S" and not any("vuproc-rehearsal" in file for file in files)


@pytest.fixture(scope="module")
def disk_process() -> Iterator[Served]:
    with serve(DISK) as served:
        yield served


@pytest.fixture
def disk(disk_process: Served) -> Iterator[Served]:
    """A block device with four queues, shared by a module's tests.

    After each test its processes are the same and hold the same descriptors as before.
    """
    before = Footprint.of(disk_process)
    yield disk_process
    assert Footprint.of(disk_process) == before


@pytest.fixture
def rejects(disk: Served) -> Rejects:
    return Rejects(disk)


@pytest.fixture
def own_disk() -> Iterator[Served]:
    """A block device of a test's own, whose workers may die."""
    with serve(DISK) as served:
        yield served
