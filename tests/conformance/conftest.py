"""The device under attack: a real `vuproc run` on a real socket, watched for what it keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance import processes
from tests.conformance.checks import Rejects
from vuproc.testing.serve import Served, serve

DISK = {"type": "blk", "ram": "16MiB", "queues": 4, "queue_size": 256}


@dataclass(frozen=True)
class Footprint:
    """What a served device holds while a connection that has set up nothing is open.

    The reply to the connection's first message proves that the one before is wholly gone.
    """

    processes: dict[int, Counter[str]]

    @staticmethod
    def of(served: Served) -> Footprint:
        with served.connect() as front_end:
            front_end.request("GET_FEATURES")
            members = processes.family(served.pid)
        return Footprint({pid: process.files for pid, process in members.items()})


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
