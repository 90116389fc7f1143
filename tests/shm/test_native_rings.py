"""One native device that serves several rings of its worker."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel import has_uring
from tests.shm.guest import DATA, Guest, fail, user
from vuproc.devices.blk_native import NativeBlk
from vuproc.devices.blk_uring import UringBlk
from vuproc.shm.native import NativeDevice
from vuproc.shm.split import SplitRing
from vuproc.shm.uring import Uring

SECTOR = 512


@pytest.fixture
def image() -> Iterator[int]:
    made = os.memfd_create("image", os.MFD_CLOEXEC)
    os.truncate(made, 64 * SECTOR)
    for sector in range(64):
        os.pwrite(made, bytes([sector]) * SECTOR, sector * SECTOR)
    yield made
    os.close(made)


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    with Guest(8) as first, Guest(8) as second:
        yield [first, second]


def ring_of(guest: Guest, queue: int) -> SplitRing:
    made = SplitRing(
        queue,
        guest.size,
        guest.memory,
        user(guest.desc),
        user(guest.avail),
        user(guest.used),
        0,
        features=0,
        chain_limit=0,
    )
    made.set_call(guest.call)
    return made


def read(guest: Guest, head: int, sector: int) -> None:
    """Offer a read of a sector to DATA + 1024 * head."""
    at = DATA + 1024 * head
    guest.write(at, struct.pack("<IIQ", 0, 0, sector))
    guest.submit(head, [(at, 16, False), (at + 16, SECTOR + 1, True)])


def content(guest: Guest, head: int) -> bytes:
    return guest.read(DATA + 1024 * head + 16, SECTOR + 1)


def uring(image: int) -> Uring:
    if not has_uring():
        pytest.skip("this kernel has no io_uring for us")
    return Uring(8, [image])


def serve(ring: SplitRing, device: NativeDevice) -> None:
    assert ring.serve_native(device, fail, 100) is False


def test_each_ring_gets_its_own_completions(guests: list[Guest], image: int) -> None:
    device = NativeBlk(image, 64 * SECTOR)
    rings = [ring_of(guest, 2 + i) for i, guest in enumerate(guests)]
    for i, guest in enumerate(guests):
        read(guest, 0, 7 + i)
        read(guest, 2, 9 + i)
    for ring in rings:
        serve(ring, device)
    for i, guest in enumerate(guests):
        assert guest.reap() == [(0, SECTOR + 1), (2, SECTOR + 1)]
        assert content(guest, 0) == bytes([7 + i]) * SECTOR + b"\0"
        assert content(guest, 2) == bytes([9 + i]) * SECTOR + b"\0"


def test_deferred_requests_of_the_same_head_come_back_to_their_rings(
    guests: list[Guest], image: int
) -> None:
    device = UringBlk(image, 64 * SECTOR)
    rings = [ring_of(guest, 5 * i) for i, guest in enumerate(guests)]
    urings = [uring(image) for _ in guests]
    for ring, own in zip(rings, urings, strict=True):
        device.set_uring(ring.queue, own)
        assert device.uring_of(ring.queue) is own
    for turn in range(4):
        for i, guest in enumerate(guests):
            read(guest, 0, 10 * turn + i)
            rings[i].serve_native(device, fail, 1)
        for i, guest in enumerate(guests):
            while rings[i].in_flight:
                rings[i].publish()
            assert guest.reap() == [(0, SECTOR + 1)]
            assert content(guest, 0)[:1] == bytes([10 * turn + i])
    # One of them stops, with a request under way, and the other one goes on.
    read(guests[0], 2, 1)
    read(guests[1], 2, 2)
    for ring in rings:
        ring.serve_native(device, fail, 1)
    rings[0].stop()
    assert device.uring_of(0) is None and guests[0].reap() == []
    while rings[1].in_flight:
        rings[1].publish()
    assert guests[1].reap() == [(2, SECTOR + 1)] and content(guests[1], 2)[:1] == b"\2"
    # Its place may be taken by another ring.
    with Guest(8) as third:
        ring = ring_of(third, 0)
        read(third, 4, 3)
        serve(ring, device)
        assert third.reap() == [(4, SECTOR + 1)] and content(third, 4)[:1] == b"\3"
        ring.stop()
    rings[1].stop()


def test_two_rings_of_one_queue_are_not_served_at_once(guests: list[Guest], image: int) -> None:
    device = NativeBlk(image, 64 * SECTOR)
    first, second = (ring_of(guest, 1) for guest in guests)
    serve(first, device)
    with pytest.raises(RuntimeError, match="serves another ring of this queue"):
        serve(second, device)
    first.stop()
    serve(second, device)
    with pytest.raises(RuntimeError, match="another native device"):
        serve(second, NativeBlk(image, 64 * SECTOR))


@pytest.mark.parametrize("queue", [-1, 65536, 1 << 30])
def test_there_is_no_such_queue(image: int, queue: int) -> None:
    with pytest.raises(ValueError, match="no queue"):
        NativeBlk(image, SECTOR).set_uring(queue, None)


SERVES_NOTHING = """
from tests.shm.guest import Guest, fail
from tests.shm.test_native_rings import read, ring_of
from vuproc.shm.native import NativeDevice
with Guest(8) as guest:
    read(guest, 0, 0)
    ring_of(guest, 0).serve_native(NativeDevice(), fail, 1)
"""


def test_a_device_that_serves_nothing_ends_the_process() -> None:
    """As a ring whose layout lacks something."""
    done = subprocess.run(
        [sys.executable, "-c", SERVES_NOTHING],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT
    assert done.stderr == "vuproc: a derived class does not fill in serve\n"
