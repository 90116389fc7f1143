"""Catalogue rows C4, C5 and C23 to C30: indices, events and kicks of a hostile or odd driver."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import processes
from tests.conformance.checks import (
    AT_ONCE_S,
    BROKEN_WITHIN_S,
    LAYOUTS,
    serves_newcomer,
    until,
    works,
)
from tests.conformance.gated import ANSWER, Gated, Gates
from vuproc.spec.blk import BlkStatus, BlkType
from vuproc.spec.virtio import Feature
from vuproc.testing.bell import BellKind
from vuproc.testing.block import Block
from vuproc.testing.job import Job
from vuproc.testing.serve import Served, serve


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gates]:
    made = Gates(tmp_path, queues=2)
    yield made
    made.close()


@pytest.fixture
def gated(gates: Gates) -> Iterator[Served]:
    with serve(Gated, gate=gates.path, queues=2) as served:
        yield served


@pytest.mark.parametrize("times", [1, 100])
def test_c04_c05_head_that_is_in_flight_already(gated: Served, gates: Gates, times: int) -> None:
    with gated.guest(queues=2) as guest:
        queue = guest.queues[0]
        guest.submit(0, [b"?"], [16])
        for _ in range(times):
            queue.split.offer_head(0)
        queue.ring.publish()
        queue.kick()
        assert queue.err_bell.wait(BROKEN_WITHIN_S)
        assert until(lambda: guest.status() & 0x40)
        token = guest.submit(1, [b"?"], [16])
        gates.let_go(1)
        assert guest.wait(token).content == ANSWER
        # What the device held is let go of, and nothing is written for it.
        before = queue.split.used_index
        gates.let_go(0, times)
        token = guest.submit(1, [b"?"], [16])
        gates.let_go(1)
        assert guest.wait(token).content == ANSWER
        assert queue.split.used_index == before
        guest.reset()
        token = guest.submit(0, [b"?"], [16])
        gates.let_go(0)
        assert guest.wait(token).content == ANSWER


def test_c05_all_entries_the_same_head(disk: Served) -> None:
    """The block device may be done with it each time: no harm, or broken, and a reset helps."""
    with disk.guest(queues=2) as guest:
        queue = guest.queues[0]
        guest.submit(0, [Block.header(BlkType.IN)], [512, 1])
        for _ in range(127):
            queue.split.offer_head(0)
        queue.ring.publish()
        queue.kick()
        works(guest, 1)
        guest.reset()
        works(guest)


@pytest.mark.parametrize("without", [0, Feature.EVENT_IDX])
def test_c24_driver_writes_the_device_s_words(disk: Served, without: int) -> None:
    """The device goes by its own count and does not read them back."""
    with disk.guest(queues=2, without=without) as guest:
        works(guest)
        queue = guest.queues[0]
        for wrong in (0, 1, 0x7FFF, 0xFFFF):
            expected = queue.ring.position + 1
            queue.ring.arm()
            queue.split.used_index = wrong
            queue.split.used_flags = 0xFFFE
            queue.split.avail_event = 0x5555
            token = queue.submit([Block.header(BlkType.IN)], [512, 1], kick=True)
            while queue.split.used_index != expected:
                assert queue.call_bell.wait(AT_ONCE_S)
            assert queue.wait(token).data[1] == b"\0"
        works(guest)


def test_c25_used_event_is_garbage(disk: Served) -> None:
    """More or fewer calls for this guest, and nothing else."""
    with disk.guest(queues=2) as guest:
        queue = guest.queues[0]
        values = random.Random(25)
        for _ in range(300):
            token = queue.submit([Block.header(BlkType.IN)], [512, 1])
            queue.split.used_event = values.randrange(0x10000)
            queue.split.avail_flags = values.randrange(0x10000)
            assert queue.wait(token).data[1] == b"\0"
        works(guest)


@LAYOUTS
@pytest.mark.parametrize("without", [0, Feature.EVENT_IDX])
def test_c26_calls_switched_off_and_on_under_load(disk: Served, without: int, packed: bool) -> None:
    """A sleeping driver that arms, sleeps and disarms at every turn loses no wake-up."""
    with disk.guest(queues=1, without=without, packed=packed) as guest:
        for depth in (1, 2, 8):
            stats = guest.load(0, Job(count=5000, depth=depth, block_size=512, span=1 << 20))
            assert (stats.completed, stats.failed) == (5000, 0)


@pytest.mark.proves("VIRTIO_F_EVENT_IDX", front_end="built-in")
@LAYOUTS
@pytest.mark.parametrize("without", [0, Feature.EVENT_IDX])
def test_c26_no_kick_is_lost_on_a_device_that_sleeps(
    disk: Served, without: int, packed: bool
) -> None:
    """One request at a time from a driver that polls: the device goes to sleep after each."""
    with disk.guest(queues=1, without=without, packed=packed) as guest:
        job = Job(count=20_000, depth=1, block_size=512, span=1 << 20, poll=True)
        stats = guest.load(0, job)
        assert (stats.completed, stats.failed) == (20_000, 0)


@LAYOUTS
def test_c26_driver_that_never_wants_calls_gets_few(disk: Served, packed: bool) -> None:
    with disk.guest(queues=1, packed=packed) as guest:
        queue = guest.queues[0]
        queue.ring.disarm()
        stats = guest.load(0, Job(count=20000, depth=16, block_size=512, span=1 << 20, poll=True))
        assert stats.completed == 20000
        assert queue.call_bell.count() < 2000


@pytest.mark.parametrize("grouped", [False, True], ids=["own_worker", "one_worker"])
def test_c27_kick_storm_on_an_empty_ring(grouped: bool) -> None:
    """The other queue keeps its share, also where one process serves both."""
    file = {"workers": [[0, 1]]} if grouped else {}
    device = {"type": "blk", "ram": "16MiB", "queues": 2}
    with serve(device, file=file) as served, served.guest(queues=2) as guest:
        storm = guest.queues[1]
        over = threading.Event()

        def kick() -> None:
            while not over.is_set():
                storm.kick()

        thread = threading.Thread(target=kick)
        thread.start()
        try:
            stats = guest.load(0, Job(count=5000, depth=16, block_size=512, span=1 << 20))
        finally:
            over.set()
            thread.join()
        assert (stats.completed, stats.failed) == (5000, 0)
        works(guest)


@LAYOUTS
def test_c28_driver_that_does_not_kick_is_seen_at_the_next_kick(disk: Served, packed: bool) -> None:
    with disk.guest(queues=2, packed=packed) as guest:
        queue = guest.queues[0]
        tokens = [queue.submit([Block.header(BlkType.IN)], [512, 1], kick=False) for _ in range(10)]
        queue.kick()
        assert [queue.wait(token).data[1] for token in tokens] == [b"\0"] * 10


@LAYOUTS
def test_c28_requests_offered_before_the_ring_started_need_no_kick(
    disk: Served, packed: bool
) -> None:
    with disk.guest(queues=1, packed=packed) as guest:
        queue = guest.make_queue(1)
        token = queue.submit([Block.header(BlkType.IN)], [512, 1], kick=False)
        queue.ring.arm()
        guest.configure_queue(queue)
        guest.kick_queue(queue)
        guest.enable_queue(1)
        assert queue.wait(token).data[1] == b"\0"


@LAYOUTS
def test_c29_kick_on_a_disabled_ring_is_not_processed_until_it_is_enabled(
    disk: Served, packed: bool
) -> None:
    with disk.guest(queues=2, packed=packed) as guest:
        queue = guest.queues[0]
        guest.enable_queue(0, False)
        token = queue.submit([Block.header(BlkType.IN)], [512, 1], kick=True)
        queue.kick()
        works(guest, 1)
        guest.front_end.set_memory(guest.ram.regions)  # every worker has answered since the kick
        assert not queue.ring.pending
        guest.enable_queue(0)
        assert queue.wait(token).data[1] == b"\0"


@LAYOUTS
def test_c29_kick_after_the_ring_was_stopped(disk: Served, packed: bool) -> None:
    with disk.guest(queues=2, packed=packed) as guest:
        queue = guest.queues[0]
        guest.stop_queue(0)
        queue.submit([Block.header(BlkType.IN)], [512, 1], kick=True)
        works(guest, 1)
        guest.front_end.set_memory(guest.ram.regions)
        assert not queue.ring.pending


@pytest.mark.parametrize("size", [2, 4, 256])
@pytest.mark.parametrize("without", [0, Feature.EVENT_IDX])
def test_c30_full_ring_over_the_wrap_of_its_indices(disk: Served, size: int, without: int) -> None:
    """The split ring's: 16 bits, whatever its size."""
    with disk.guest(queues=1, queue_size=size, without=without) as guest:
        job = Job(
            count=70_000, depth=size, block_size=512, span=1 << 20, poll=True, read_percent=50
        )
        stats = guest.load(0, job)
        assert (stats.completed, stats.failed) == (70_000, 0)
        assert guest.queues[0].ring.position == 70_000 & 0xFFFF
        assert Block(guest).request(BlkType.FLUSH, indirect=True).status == BlkStatus.OK


@LAYOUTS
def test_c30_content_survives_many_wraps(disk: Served, packed: bool) -> None:
    with disk.guest(queues=2, queue_size=32, packed=packed) as guest:
        for queue in (0, 1):
            written, read = (
                guest.load(
                    queue,
                    Job(
                        count=1024,
                        start=queue * (4 << 20),
                        span=4 << 20,
                        sequential=True,
                        read_percent=percent,
                        pattern=queue,
                    ),
                )
                for percent in (0, 100)
            )
            assert (written.failed, read.failed, read.corrupt) == (0, 0, 0)
            assert read.bytes_read == written.bytes_written == 4 << 20
        swapped = guest.load(0, Job(count=16, pattern=99, span=4 << 20, depth=8))
        assert swapped.corrupt == 16, "the check of the content finds nothing"


def test_idle_device_uses_no_processor_time(disk: Served) -> None:
    """Measured over the time that a descriptor stays silent."""
    with disk.guest(queues=4, call=BellKind.EVENTFD) as guest:
        works(guest)
        members = processes.family(disk.pid)
        before = {pid: processes.cpu_seconds(pid) for pid in members}
        assert not guest.queues[0].err_bell.wait(1.0)
        for pid in members:
            assert processes.cpu_seconds(pid) - before[pid] < 0.2, f"process {pid} is not idle"
    serves_newcomer(disk)
