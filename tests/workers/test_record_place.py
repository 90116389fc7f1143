"""A ring's position from its record alone is the one that the ring itself stops at."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from vuproc.fd import Fd
from vuproc.shm.inflight import SplitRecord
from vuproc.shm.memory import GuestMemory
from vuproc.shm.packed import PackedRing
from vuproc.shm.packed_record import PackedRecord
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing
from vuproc.spec.ring_layout import PACKED, SPLIT
from vuproc.spec.virtio import Feature
from vuproc.testing.memory import Ram
from vuproc.testing.queue import DriverQueue
from vuproc.vhost_user.effects import Inflight
from vuproc.workers.record_place import place_in_record

SIZE = 16


@pytest.fixture
def ram() -> Iterator[Ram]:
    made = Ram(1 << 20)
    yield made
    made.close()


@pytest.fixture
def record() -> Iterator[Fd]:
    with Fd(os.memfd_create("record", os.MFD_CLOEXEC)) as fd:
        os.ftruncate(fd.fileno(), 4096)
        yield fd


def fail(request: Request, error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(("packed", "start"), [(False, 0), (False, 65530), (True, 0)])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_where_the_ring_stops(
    ram: Ram, record: Fd, packed: bool, seed: int, start: int
) -> None:
    chance = random.Random(seed)
    layout = PACKED if packed else SPLIT
    place = Inflight(record, 64, SIZE)
    assert place_in_record(layout, place) is None
    memory = GuestMemory.from_regions(
        (r.guest_addr, r.size, r.user_addr, r.mmap_offset, r.fd.fileno()) for r in ram.regions
    )
    queue = DriverQueue(ram, 0, SIZE, packed=packed, base=None if packed else start)
    where = 0, SIZE, memory, queue.desc, queue.avail, queue.used, queue.base
    features = int(Feature.VERSION_1)
    at = record.fileno(), 64, SIZE
    ring: SplitRing | PackedRing
    if packed:
        made = PackedRecord(*at)
        ring = PackedRing(*where, features=features, chain_limit=SIZE, record=made)
    else:
        split = SplitRecord(*at)
        ring = SplitRing(*where, features=features, chain_limit=SIZE, record=split)
    kept: list[Request] = []

    def handle(request: Request) -> None:
        if chance.random() < 0.4 and len(kept) < 4:
            request.defer()
            kept.append(request)

    for _ in range(20):
        queue.submit([b"abc"] * chance.randrange(1, 4), kick=False)
        ring.drain(handle, fail, 64)
        if kept and chance.random() < 0.5:
            kept.pop(chance.randrange(len(kept))).finish()
            ring.publish()
        queue.reap()
    found = place_in_record(layout, place)
    base = ring.stop(keep=True)
    assert found == (layout.earlier(base, ring.kept), ring.kept)
    queue.close()
