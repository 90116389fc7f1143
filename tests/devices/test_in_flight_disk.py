"""A disk is used by the load generator while its guest moves, with all that is in flight."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.devices.migrant import Migrant
from vuproc.testing import Job, Served, serve
from vuproc.testing.guest import Guest

QUEUES = 2
SIZE = 128
SPAN = 4 << 20
DISK = 64 << 20
MOVES = 6
STALL_S = 60.0

pytestmark = pytest.mark.timeout(300)


class Load:
    """Writes to one half of the disk and reads that back, again and again until it is told."""

    def __init__(self, guest: Guest, queue: int) -> None:
        self.rounds = 0
        self.failure: BaseException | None = None
        self._guest = guest
        self._queue = queue
        self._enough = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._enough:
                for percent in (0, 100):
                    job = Job(
                        count=2048,
                        start=self._queue * (DISK // QUEUES),
                        span=SPAN,
                        pattern=7 + self._queue + 2 * self.rounds,
                        read_percent=percent,
                        sequential=True,
                        stall_s=STALL_S,
                    )
                    stats = self._guest.load(self._queue, job)
                    assert (stats.completed, stats.failed, stats.corrupt) == (2048, 0, 0)
                with self._news:
                    self.rounds += 1
                    self._news.notify_all()
        except BaseException as error:
            with self._news:
                self.failure = error
                self._news.notify_all()

    def one_more(self) -> None:
        """Wait for a round that ends."""
        with self._news:
            before = self.rounds
            assert self._news.wait_for(
                lambda: self.failure is not None or self.rounds > before, STALL_S
            )
        assert self.failure is None, self.failure

    def end(self) -> None:
        self._enough = True
        self._thread.join()
        assert self.failure is None, self.failure


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("engine", ["sync", "io_uring", "python"])
def test_a_disk_is_used_while_its_guest_moves(tmp_path: Path, engine: str, packed: bool) -> None:
    image = tmp_path / "disk.raw"
    image.touch()
    os.truncate(image, DISK)
    device: dict[str, Any] = {"type": "blk", "image": str(image), "engine": engine}
    device |= {"queues": QUEUES, "queue_size": SIZE, "locking": "off"}
    with serve(device) as one, serve(device) as two:
        with Migrant(one, QUEUES, SIZE, packed=packed, memory=64 << 20) as migrant:
            loads = [Load(migrant.guest, queue) for queue in range(QUEUES)]
            try:
                for turn in range(MOVES):
                    to: Served = (two, one)[turn % 2]
                    migrant.move(to)
                    loads[turn % QUEUES].one_more()
            finally:
                for load in loads:
                    load.end()
        for served in (one, two):
            # The guest may be back before its last connection was seen to be gone.
            said = [line for line in served.lines if "another front-end waits" not in line]
            assert not [line for line in said if "ERROR" in line or "WARNING" in line]
