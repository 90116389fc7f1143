"""Packed rings on the devices that come with vuproc: sessions, bases, and workers that die."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vuproc.spec.virtio import Feature
from vuproc.testing import Block, DriverQueue, Guest, Job, NotOffered, Served, serve

SIZE = 11
SPAN = 1 << 20


@pytest.fixture(scope="module", params=["native", "python", "io_uring"])
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A disk by each of its engines."""
    device: dict[str, Any] = {"type": "blk", "queues": 2, "queue_size": 256}
    if request.param == "native":
        device["ram"] = 2 * SPAN
    else:
        image = Path(tmp_path_factory.mktemp("disk"), "image")
        image.write_bytes(bytes(2 * SPAN))
        device |= {"image": str(image), "engine": request.param}
    with serve(device) as served:
        yield served


def verified(guest: Guest, queue: int, pattern: int) -> None:
    """Write all of a queue's half and read it back."""
    for percent in (0, 100):
        stats = guest.load(
            queue,
            Job(
                count=SPAN // 4096,
                depth=SIZE // 3,
                start=queue * SPAN,
                span=SPAN,
                sequential=True,
                read_percent=percent,
                pattern=pattern,
                indirect=bool(pattern % 2),
            ),
        )
        assert (stats.completed, stats.failed, stats.corrupt) == (SPAN // 4096, 0, 0)


@pytest.mark.proves("VIRTIO_F_RING_PACKED", front_end="built-in")
@pytest.mark.parametrize("without", [0, Feature.EVENT_IDX])
def test_what_is_written_is_read(disk: Served, without: int) -> None:
    with disk.guest(queues=2, queue_size=SIZE, packed=True, without=without) as guest:
        assert guest.packed
        for queue in range(2):
            for pattern in range(2):
                verified(guest, queue, pattern)


def test_kills_under_verified_load_lose_nothing(disk: Served) -> None:
    with disk.guest(queues=2, queue_size=SIZE, packed=True) as guest:
        over = threading.Event()
        kills = []

        def kill() -> None:
            while not over.wait(0.01):
                pid = disk.kill_worker(0)
                kills.append(pid)
                disk.wait_worker(0, other_than=pid)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            for pattern in range(200):
                verified(guest, 0, pattern)
                if len(kills) > 5:
                    break
        finally:
            over.set()
            killer.join()
        assert len(kills) > 5
        verified(guest, 1, 1)
        assert guest.queues[0].ring.free == SIZE


def restarted(guest: Guest, queue: DriverQueue, base: int) -> None:
    """Stop a queue and start it again where it is, with this base."""
    stopped = guest.stop_queue(queue.index)
    assert stopped == queue.ring.position
    queue.base = base
    guest.configure_queue(queue)
    guest.kick_queue(queue)


def test_a_ring_goes_on_where_it_stopped(disk: Served) -> None:
    """The base is told as it came, or by its lower half alone, as DPDK does."""
    with disk.guest(queues=2, queue_size=SIZE, packed=True) as guest:
        block, queue = Block(guest), guest.queues[0]
        for turn in range(3 * SIZE):
            block.write(turn, bytes([turn]) * 512)
            position = queue.ring.position
            restarted(guest, queue, position if turn % 2 else position & 0xFFFF)
            assert block.read(turn, 512) == bytes([turn]) * 512


@pytest.mark.parametrize("base", [0x8000_8005, 0x8003_8003, 0x000A_000A, 0x0000_0000])
def test_a_ring_that_starts_anywhere_is_served(disk: Served, base: int) -> None:
    """With descriptors of somebody else in flight, too: they stay where they are."""
    with disk.guest(queues=1, queue_size=SIZE, packed=True) as guest:
        queue = guest.make_queue(0, base=base)
        guest.stop_queue(0)
        guest.configure_queue(queue)
        guest.kick_queue(queue)
        free = queue.ring.free
        assert free == SIZE - 5 * (base == 0x8000_8005)
        block = Block(guest)
        for turn in range(2 * SIZE):
            block.write(turn, bytes([turn]) * 512)
            assert block.read(turn, 512) == bytes([turn]) * 512
        assert queue.ring.free == free


@pytest.mark.parametrize("base", [0, 0x8000])
def test_a_new_ring_may_be_announced_otherwise(disk: Served, base: int) -> None:
    """User-Mode Linux says 0 for a ring that has not begun, DPDK 0x8000."""
    with disk.guest(queues=1, queue_size=SIZE, packed=True) as guest:
        queue = guest.make_queue(0)
        guest.stop_queue(0)
        queue.base = base
        guest.configure_queue(queue)
        guest.kick_queue(queue)
        verified(guest, 0, 1)


def test_firmware_is_split_and_its_guest_packed_in_one_session(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        Block(guest).write(0, b"f" * 512)
        for features in (
            guest.front_end.features | Feature.RING_PACKED,
            guest.front_end.features,
        ):
            for index in range(2):
                guest.stop_queue(index)
            guest.set_status(0)
            guest.front_end.set_features(features)
            for index in range(2):
                guest.start_queue(index)
            assert guest.packed == bool(features & Feature.RING_PACKED)
            assert Block(guest).read(0, 512, queue=1) == b"f" * 512
            guest.reset()
            assert Block(guest).read(0, 512) == b"f" * 512


def test_packed_rings_are_not_taken_unless_asked_for(disk: Served) -> None:
    with disk.guest() as guest:
        assert not guest.packed
    with disk.guest(features=Feature.RING_PACKED | Feature.VERSION_1) as guest:
        assert guest.packed
        assert len(Block(guest).read(0, 512)) == 512


def test_a_device_that_offers_none_says_so() -> None:
    device = {"type": "blk", "ram": "1MiB"}
    with serve(device, file={"packed": False}) as served:
        with pytest.raises(NotOffered, match="does not offer RING_PACKED"):
            served.guest(packed=True)
        with served.guest() as guest:
            assert len(Block(guest).read(0, 512)) == 512
