"""Devices behind an IOMMU: every byte is where the driver's addresses say, whatever happens."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.devices.holding import RX, TX, Keeps
from tests.devices.scattering import pages_of
from tests.devices.translating import QUEUES, Arena, Flips
from tests.field.events import status
from vuproc.ops.admin import Request, ask
from vuproc.spec.iotlb import IOTLB_PAGE
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.testing import serve
from vuproc.testing.block import Block
from vuproc.testing.dirty import DirtyBitmap
from vuproc.testing.guest import Guest
from vuproc.testing.job import Job
from vuproc.testing.serve import Served

FILE = {"iommu": True}
BOUND_S = 60.0
LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
ROUNDS = 40 if LONG else 8
REQUESTS = 8

pytestmark = pytest.mark.timeout(240)


def calm(served: Served) -> None:
    """Nothing was worth a warning."""
    events = [line for line in served.lines if "WARNING" in line or "ERROR" in line]
    assert not events, events


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Served]:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(16 << 20))
    with serve({"type": "blk", "image": image, "queues": 2}, file=FILE) as served:
        yield served


@pytest.mark.proves(
    "IOTLB_MSG", "BACKEND_IOTLB_MSG", "VIRTIO_F_ACCESS_PLATFORM", front_end="built-in"
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
def test_a_disk(disk: Served, packed: bool, indirect: bool) -> None:
    chance = random.Random(1)
    with Guest(disk.socket, queues=2, iommu=True, packed=packed) as guest:
        block = Block(guest)
        for round in range(8):
            data = chance.randbytes(512 * chance.randrange(1, 40))
            queue = round % 2
            done = block.request(1, 8 * round, [data], queue=queue, indirect=indirect)
            assert done.status == 0
            assert block.read(8 * round, len(data), queue=1 - queue) == data
    calm(disk)


# ---- at random -----------------------------------------------------------------------------------

Event = Callable[[Served, Guest], None]


def kill(served: Served, guest: Guest) -> None:
    served.kill_worker(0)


def kill_master(served: Served, guest: Guest) -> None:
    os.kill(status(served.socket)["pid"], signal.SIGKILL)


def upgrade(served: Served, guest: Guest) -> None:
    ask(served.socket, Request("upgrade"), BOUND_S)


def forget_everything(served: Served, guest: Guest) -> None:
    assert guest.iommu is not None
    guest.iommu.invalidate(0, 0)


def forget_a_ring(served: Served, guest: Guest) -> None:
    assert guest.iommu is not None
    guest.iommu.invalidate(guest.queues[1].desc, IOTLB_PAGE)


def tell_memory(served: Served, guest: Guest) -> None:
    guest.front_end.set_memory(guest.ram.regions)


def nothing(served: Served, guest: Guest) -> None:
    pass


@pytest.mark.parametrize(
    ("events", "arguments", "packed"),
    [
        ([nothing, forget_everything, forget_a_ring, tell_memory], (), False),
        ([nothing, forget_everything, forget_a_ring, tell_memory], (), True),
        ([kill, forget_everything], (), False),
        ([kill, forget_everything], (), True),
        ([kill_master, upgrade, forget_a_ring], ("--supervised",), False),
    ],
    ids=["split", "packed", "split-deaths", "packed-deaths", "master"],
)
def test_buffers_page_by_page(
    events: list[Event], arguments: tuple[str, ...], packed: bool
) -> None:
    chance = random.Random(random.randrange(1 << 32) if LONG else 7)
    arena = Arena(chance)
    with (
        serve(Flips, file=FILE, arguments=arguments) as served,
        Guest(served.socket, queues=QUEUES, memory=arena.ram, iommu=True, packed=packed) as guest,
    ):
        for _ in range(ROUNDS):
            half = REQUESTS // 2
            for part in range(2):
                for queue in guest.queues.values():
                    for _ in range(half):
                        arena.submit(guest, queue)
                if part == 0:
                    chance.choice(events)(served, guest)
            arena.finish(guest, 2 * half)
    assert not [line for line in served.lines if "broken" in line], served.lines


@pytest.mark.parametrize("packed", [False, True])
def test_pages_are_marked_by_their_guest_addresses(packed: bool) -> None:
    """And those of requests that were in flight before there was a log."""
    arena = Arena(random.Random(3))
    with (
        serve(Flips, file=FILE) as served,
        Guest(served.socket, queues=QUEUES, memory=arena.ram, iommu=True, packed=packed) as guest,
        DirtyBitmap(128 << 20) as log,
    ):
        for queue in guest.queues.values():
            for _ in range(4):
                arena.submit(guest, queue)
        guest.log_writes(log)
        for queue in guest.queues.values():
            for _ in range(4):
                arena.submit(guest, queue)
        late = [buffer for buffer in arena.offered[-32:] if buffer.expected]
        rings = {
            page
            for queue in guest.queues.values()
            for page in pages_of([(queue.block.guest_addr, queue.block.size)])
        }
        arena.finish(guest, 8)
        marked = log.pages()
        first = arena.region.guest_addr // IOTLB_PAGE
        wanted = {first + page for buffer in late for page in buffer.pages}
        assert wanted <= marked
        assert marked & rings
        assert all(page >= first or page in rings for page in marked), "no page of an IOVA's number"


def test_buffers_that_a_device_keeps_are_given_back_for_an_invalidation() -> None:
    """No worker is killed for it."""
    with serve(Keeps, file=FILE) as served, Guest(served.socket, queues=2, iommu=True) as guest:
        assert guest.iommu is not None
        pid = served.status().queues[RX].pid
        kept = [guest.submit(RX, in_=[64]) for _ in range(4)]
        assert guest.do(TX, [b"count"], [4]).content == b"4"
        guest.iommu.invalidate(0, 0)
        # They come to the device again, once it is known anew where they lie.
        guest.do(TX, [b"hello"])
        assert guest.wait(kept[0]).content == b"hello"
        assert served.status().queues[RX].pid == pid
        calm(served)


@pytest.mark.parametrize("packed", [False, True])
def test_a_worker_that_dies_with_its_misses_unanswered(packed: bool) -> None:
    arena = Arena(random.Random(5))
    with (
        serve(Flips, file=FILE) as served,
        Guest(served.socket, queues=QUEUES, memory=arena.ram, iommu=True, packed=packed) as guest,
    ):
        iommu = guest.iommu
        assert iommu is not None
        asked = iommu.misses.total()
        iommu.answers = False
        for queue in guest.queues.values():
            for _ in range(3):
                arena.submit(guest, queue)
        iommu.wait_for_misses(asked + 1)
        pid = served.status().queues[0].pid
        served.kill_worker(0)
        served.wait_worker(0, other_than=pid)
        iommu.answers = True
        # The ones that were not answered are not asked again on this channel: another one is.
        iommu.reopen()
        arena.finish(guest, 3)


def test_a_ring_that_waits_for_its_place_stops_where_it_was() -> None:
    arena = Arena(random.Random(9))
    with (
        serve(Flips, file=FILE) as served,
        Guest(served.socket, queues=QUEUES, memory=arena.ram, iommu=True) as guest,
    ):
        iommu = guest.iommu
        assert iommu is not None
        for queue in guest.queues.values():
            for _ in range(5):
                arena.submit(guest, queue)
        arena.finish(guest, 5)
        iommu.answers = False
        iommu.invalidate(0, 0)
        assert guest.stop_queue(0) == 6
        # The other one's worker dies, and its successor knows nothing but the record.
        pid = served.status().queues[1].pid
        served.kill_worker(1)
        served.wait_worker(1, other_than=pid)
        assert guest.stop_queue(1) == 6


@pytest.mark.parametrize("packed", [False, True])
def test_a_load_on_each_queue(disk: Served, packed: bool) -> None:
    with Guest(disk.socket, queues=2, iommu=True, packed=packed, memory=64 << 20) as guest:
        for queue in range(2):
            for percent in (0, 100):
                job = Job(
                    count=256,
                    depth=16,
                    start=queue << 20,
                    span=1 << 20,
                    read_percent=percent,
                    sequential=True,
                    pattern=1,
                )
                assert guest.load(queue, job).corrupt == 0
    calm(disk)


@pytest.mark.proves("PROTOCOL_F_GPA_ADDRESSES", front_end="built-in")
@pytest.mark.parametrize("packed", [False, True])
def test_guest_addresses_in_place_of_the_front_ends(tmp_path: Path, packed: bool) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    with serve({"type": "blk", "image": image}, file=FILE) as served:
        for iommu in (False, True):
            with Guest(served.socket, guest_addresses=True, iommu=iommu, packed=packed) as guest:
                block = Block(guest)
                block.write(1, bytes([iommu]) * 4096)
                assert block.read(1, 4096) == bytes([iommu]) * 4096
                assert guest.front_end.protocol_features & ProtocolFeature.GPA_ADDRESSES
