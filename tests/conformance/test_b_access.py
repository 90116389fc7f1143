"""Catalogue rows B7 to B11 and B16 to B18: memory that is not there when it is used."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from tests.conformance import processes
from tests.conformance.checks import (
    BROKEN_WITHIN_S,
    broken,
    reaped,
    serves_newcomer,
    serving,
    until,
    works,
)
from vuproc.spec.blk import BlkStatus, BlkType
from vuproc.spec.virtio import Status
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest
from vuproc.testing.memory import Ram, RamRegion
from vuproc.testing.serve import Served

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
MIB = 1 << 20


@pytest.fixture
def doomed() -> RamRegion:
    """The region that is going to lose its file; the guest owns it."""
    return RamRegion(1 << 30, MIB)


def guest_with_ring_in(disk: Served, doomed: RamRegion) -> Guest:
    """Queue 0's ring lies in `doomed`; queue 1 and all data lie elsewhere."""
    guest = disk.guest(memory=Ram([doomed, RamRegion(1 << 20, 8 * MIB)]), start=False)
    try:
        guest.setup()
        guest.start_queue(0)
        assert guest.queues[0].block.region is doomed
        guest.ram.regions.reverse()
        guest.start_queue(1)
        guest.set_status(15)
        works(guest)
    except BaseException:
        guest.close()
        raise
    return guest


def test_b08_memory_truncated_under_a_ring(own_disk: Served, doomed: RamRegion) -> None:
    """The worker dies of SIGBUS alone, is not started again and again, and a reset revives it."""
    with guest_with_ring_in(own_disk, doomed) as guest:
        before = serving(own_disk)
        os.ftruncate(doomed.fd.fileno(), 0)
        guest.queues[0].kick()
        assert guest.queues[0].err_bell.wait(BROKEN_WITHIN_S)
        assert until(lambda: guest.status() & Status.NEEDS_RESET)
        works(guest, 1)
        after = serving(own_disk)
        assert len(before - after) == 1, "one worker died"
        for _ in range(3):
            guest.queues[0].kick()
            works(guest, 1)
        assert serving(own_disk) == after, "a worker is started again and again"
        # The VMM grows its file again, or not: new rings elsewhere work.
        guest.front_end.remove_region(doomed)
        guest.ram.regions.remove(doomed)
        guest.reset()
        works(guest)
        doomed.close()
    serves_newcomer(own_disk)


def test_b08_memory_truncated_and_the_vmm_gone(own_disk: Served, doomed: RamRegion) -> None:
    with guest_with_ring_in(own_disk, doomed) as guest:
        os.ftruncate(doomed.fd.fileno(), 0)
        guest.queues[0].kick()
    serves_newcomer(own_disk)


def test_b08_memory_truncated_before_a_ring_starts_in_it(
    own_disk: Served, doomed: RamRegion
) -> None:
    with guest_with_ring_in(own_disk, doomed) as guest:
        os.ftruncate(doomed.fd.fileno(), 0)
        guest.stop_queue(1)
        works_not = guest.queues[0]
        works_not.kick()
        assert works_not.err_bell.wait(BROKEN_WITHIN_S)
        guest.start_queue(1)
        works(guest, 1)
    serves_newcomer(own_disk)


@pytest.fixture
def truncated_data(own_disk: Served) -> Iterator[tuple[Guest, int]]:
    """A guest with a region whose file is gone, and a guest address in it."""
    lost = RamRegion(1 << 30, MIB)
    with own_disk.guest(queues=2) as guest:
        guest.add_memory(lost)
        works(guest)
        os.ftruncate(lost.fd.fileno(), 0)
        yield guest, lost.guest_addr + 4096


@pytest.mark.parametrize("kind", [BlkType.IN, BlkType.OUT])
def test_b09_data_page_truncated(truncated_data: tuple[Guest, int], kind: BlkType) -> None:
    """The kernel finds it out while it copies: this request fails, the queue goes on."""
    guest, address = truncated_data
    queue = guest.queues[0]
    header, status = guest.ram.allocate(16), guest.ram.allocate(1)
    header.view[:] = Block.header(kind)
    status.view[:] = b"\xff"
    queue.ring.add(
        [
            (header.guest_addr, 16, False),
            (address, 4096, kind is BlkType.IN),
            (status.guest_addr, 1, True),
        ]
    )
    queue.ring.publish()
    queue.kick()
    assert len(reaped(queue)) == 1
    assert status.view[0] == BlkStatus.IOERR
    works(guest)


def test_b09_header_truncated_costs_at_most_that_queue(
    own_disk: Served, truncated_data: tuple[Guest, int]
) -> None:
    """What the worker itself reads is SIGBUS; only this worker pays for it."""
    guest, address = truncated_data
    queue = guest.queues[0]
    queue.ring.add([(address, 16, False), (address + 512, 1, True)])
    queue.ring.publish()
    queue.kick()
    assert queue.err_bell.wait(BROKEN_WITHIN_S)
    works(guest, 1)
    serves = own_disk
    guest.close()
    serves_newcomer(serves)


def test_b10_hole_punched_under_a_ring(disk: Served) -> None:
    """The ring reads as zeros: legal content or broken, but nothing dies."""
    with disk.guest(queues=2) as guest:
        works(guest)
        block = guest.queues[0].block
        fd = guest.ram.regions[0].fd.fileno()
        _punch(fd, block.offset // 4096 * 4096, 4096 * (1 + block.size // 4096))
        guest.queues[0].kick()
        # avail.idx went from 2 back to 0, which is 65534 entries ahead.
        broken(guest)


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL])
def test_b08_sealed_and_unsealed_memory_work(disk: Served, seals: int) -> None:
    ram = Ram(MIB)
    if seals:
        fcntl.fcntl(ram.regions[0].fd.fileno(), fcntl.F_ADD_SEALS, seals)
    with disk.guest(queues=2, memory=ram) as guest:
        works(guest)


def test_b16_buffer_over_two_adjacent_regions(disk: Served) -> None:
    low, high = RamRegion(1 << 30, MIB), RamRegion((1 << 30) + MIB, MIB)
    with disk.guest(queues=1) as guest:
        guest.add_memory(low)
        guest.add_memory(high)
        content = os.urandom(8192)
        low.buffer[-4096:] = content[:4096]
        high.buffer[:4096] = content[4096:]
        assert _transfer(guest, BlkType.OUT, high.guest_addr - 4096, 8192) == BlkStatus.OK
        low.buffer[-4096:] = bytes(4096)
        high.buffer[:4096] = bytes(4096)
        assert _transfer(guest, BlkType.IN, high.guest_addr - 4096, 8192) == BlkStatus.OK
        assert bytes(low.buffer[-4096:]) + bytes(high.buffer[:4096]) == content


@pytest.mark.parametrize(
    ("address", "length"),
    [
        pytest.param((1 << 30) + MIB - 4096, 8192, id="b17_ends_behind_its_region"),
        pytest.param((1 << 30) - 4096, 8192, id="b17_starts_before_its_region"),
        pytest.param((1 << 30) + MIB, 512, id="b17_just_behind"),
        pytest.param((1 << 64) - 512, 1024, id="b18_wraps"),
        pytest.param((1 << 64) - 1, 0xFFFFFFFF, id="b18_wraps_far"),
        pytest.param(1 << 30, 0xFFFFFFFF, id="b17_longer_than_all_memory"),
    ],
)
@pytest.mark.parametrize("kind", [BlkType.IN, BlkType.OUT])
def test_b16_b17_b18_buffer_that_is_not_wholly_memory(
    disk: Served, kind: BlkType, address: int, length: int
) -> None:
    with disk.guest(queues=2) as guest:
        guest.add_memory(RamRegion(1 << 30, MIB))
        queue = guest.queues[0]
        header, status = guest.ram.allocate(16), guest.ram.allocate(1)
        header.view[:] = Block.header(kind)
        queue.ring.add(
            [
                (header.guest_addr, 16, False),
                (address, length, kind is BlkType.IN),
                (status.guest_addr, 1, True),
            ]
        )
        queue.ring.publish()
        queue.kick()
        broken(guest)


def test_b19_device_made_to_write_its_own_ring(disk: Served) -> None:
    """Legal for a guest, which harms its own ring only."""
    with disk.guest(queues=2) as guest:
        works(guest)
        queue = guest.queues[0]
        header, status = guest.ram.allocate(16), guest.ram.allocate(1)
        header.view[:] = Block.header(BlkType.IN)
        ring = queue.block.guest_addr
        assert queue.block.size > 3072
        queue.ring.add(
            [(header.guest_addr, 16, False), (ring, 3072, True), (status.guest_addr, 1, True)]
        )
        queue.ring.publish()
        queue.kick()
        works(guest, 1)
        guest.reset()
        works(guest)


def test_b23_b24_guest_memory_is_seen_by_workers_alone_and_by_no_core_dump(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        works(guest)
        workers = serving(disk)
        assert len(workers) == 4
        for pid in processes.family(disk.pid):
            flags = processes.guest_mapping_flags(pid)
            assert bool(flags) == (pid in workers)
            for one in flags:
                assert {"dd", "dc"} <= one, "not excluded from core dumps or from children"


def _punch(fd: int, offset: int, length: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    result = libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
    if result != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def _transfer(guest: Guest, kind: BlkType, address: int, length: int) -> int:
    """One request with its data at a given guest address; its status."""
    queue = guest.queues[0]
    header, status = guest.ram.allocate(16), guest.ram.allocate(1)
    header.view[:] = Block.header(kind)
    queue.ring.add(
        [
            (header.guest_addr, 16, False),
            (address, length, kind is BlkType.IN),
            (status.guest_addr, 1, True),
        ]
    )
    queue.ring.publish()
    queue.kick()
    assert len(reaped(queue)) == 1
    return status.view[0]
