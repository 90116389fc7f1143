"""Catalogue rows C37 and C38, and what C1 to C30 ask of a packed ring: drivers that are odd."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from tests.conformance import processes
from tests.conformance.checks import AT_ONCE_S, broken, serves_newcomer, until, works
from vuproc.spec.blk import BlkType
from vuproc.spec.virtio import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
    Feature,
    Status,
)
from vuproc.testing import Allocation, Block, DriverQueue, Guest, Job
from vuproc.testing.serve import Served

SIZE = 9
START = 0x8000
HOLE = 1 << 40
"""A guest address where no memory is."""

Descriptor = tuple[int, int, int]
"""Address, length, flags."""


def guest_of(disk: Served, *, size: int = SIZE, without: int = 0) -> Guest:
    return disk.guest(queues=2, queue_size=size, without=without, packed=True)


def read_request(guest: Guest) -> tuple[list[Descriptor], Allocation]:
    """A good chain that reads a sector, and where its status byte goes."""
    header, data, status = (guest.ram.allocate(size) for size in (16, 512, 1))
    header.view[:] = Block.header(BlkType.IN)
    status.view[:] = b"\xff"
    chain = [
        (header.guest_addr, 16, DESC_F_NEXT),
        (data.guest_addr, 512, DESC_F_NEXT | DESC_F_WRITE),
        (status.guest_addr, 1, DESC_F_WRITE),
    ]
    return chain, status


def table(guest: Guest, entries: Sequence[Descriptor]) -> int:
    """The guest address of a table with these entries."""
    block = guest.ram.allocate(16 * len(entries))
    block.view[:] = b"".join(
        PACKED_DESC.pack(addr=address, len=length, id=0, flags=flags)
        for address, length, flags in entries
    )
    return block.guest_addr


def offer(guest: Guest, chain: Sequence[Descriptor]) -> None:
    queue = guest.queues[0]
    queue.packed.offer_descriptors(chain)
    queue.ring.publish()
    queue.kick()


def completed(queue: DriverQueue) -> list[tuple[int, int]]:
    """Sleep on the call descriptor until something is completed; what it is."""
    while not (done := queue.ring.reap()):
        if not queue.ring.arm():
            assert queue.call_bell.wait(AT_ONCE_S), "no completion, or no call for it"
    return done


def answered(guest: Guest, slot: int) -> bool:
    """Whether there is a used descriptor of the first round, after another queue's answer."""
    works(guest, 1)
    flags = guest.queues[0].packed.descriptor(slot)[3]
    return flags == PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED | DESC_F_WRITE


def hole(guest: Guest) -> list[Descriptor]:
    return [(HOLE, 16, 0)]


def no_end(guest: Guest) -> list[Descriptor]:
    return [(guest.ram.allocate(16).guest_addr, 16, DESC_F_NEXT)] * SIZE


def readable_behind_writable(guest: Guest) -> list[Descriptor]:
    (header, data, status), _ = read_request(guest)
    return [data, header, status]


def indirect_with_next(guest: Guest) -> list[Descriptor]:
    chain, _ = read_request(guest)
    return [(table(guest, chain), 48, DESC_F_INDIRECT | DESC_F_NEXT), chain[2]]


def not_whole(guest: Guest) -> list[Descriptor]:
    chain, _ = read_request(guest)
    return [(table(guest, chain), 47, DESC_F_INDIRECT)]


def empty_table(guest: Guest) -> list[Descriptor]:
    return [(table(guest, [(0, 0, 0)]), 0, DESC_F_INDIRECT)]


def table_that_is_no_memory(guest: Guest) -> list[Descriptor]:
    return [(HOLE, 48, DESC_F_INDIRECT)]


def table_in_a_table(guest: Guest) -> list[Descriptor]:
    chain, _ = read_request(guest)
    inner = table(guest, chain)
    return [(table(guest, [(inner, 48, DESC_F_INDIRECT)]), 16, DESC_F_INDIRECT)]


def table_too_long(guest: Guest) -> list[Descriptor]:
    return [(table(guest, [(0, 0, 0)] * 257), 16 * 257, DESC_F_INDIRECT)]


@pytest.mark.parametrize(
    "make",
    [
        hole,
        no_end,
        readable_behind_writable,
        indirect_with_next,
        not_whole,
        empty_table,
        table_that_is_no_memory,
        table_in_a_table,
        table_too_long,
    ],
    ids=lambda make: make.__name__,
)
def test_c38_chain_that_must_not_be(
    disk: Served, make: Callable[[Guest], list[Descriptor]]
) -> None:
    with guest_of(disk) as guest:
        offer(guest, make(guest))
        broken(guest)


def test_c38_chain_as_long_as_the_ring_is_no_loop(disk: Served) -> None:
    with guest_of(disk) as guest:
        (header, data, status), done = read_request(guest)
        empty = [(header[0], 0, DESC_F_NEXT)] * (SIZE - 3)
        offer(guest, [header, *empty, data, status])
        assert [written for _, written in completed(guest.queues[0])] == [513]
        assert bytes(done.view) == b"\0"
        works(guest)


def test_c19_indirect_without_the_feature(disk: Served) -> None:
    with guest_of(disk, without=Feature.INDIRECT_DESC) as guest:
        chain, _ = read_request(guest)
        offer(guest, [(table(guest, chain), 48, DESC_F_INDIRECT)])
        broken(guest)


def test_c22_unknown_flags_are_ignored(disk: Served) -> None:
    with guest_of(disk) as guest:
        others = 0xFFFF & ~(PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED | 0x7)
        chain, done = read_request(guest)
        offer(guest, [(address, length, flags | others) for address, length, flags in chain])
        assert [written for _, written in completed(guest.queues[0])] == [513]
        assert bytes(done.view) == b"\0"


@pytest.mark.parametrize("id", [SIZE, 0x7FFF, 0xFFFF])
def test_c37_ids_are_the_driver_s_own(disk: Served, id: int) -> None:
    """Any id comes back as it is, also one that two requests have."""
    with guest_of(disk) as guest:
        queue = guest.queues[0]
        chains = [read_request(guest) for _ in range(2)]
        for chain, _ in chains:
            queue.packed.offer_descriptors(chain, id=id)
        queue.ring.disarm()
        queue.ring.publish()
        queue.kick()
        for (_, done), slot in zip(chains, (0, 3), strict=True):
            assert until(partial(answered, guest, slot)), "it was not served"
            assert queue.packed.descriptor(slot)[1:3] == (513, id)
            assert bytes(done.view) == b"\0"


@pytest.mark.parametrize(
    "flags",
    [
        0,
        PACKED_DESC_F_USED,
        PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED,
        0xFFFF & ~PACKED_DESC_F_AVAIL,
        0xFFFF,
    ],
)
def test_c37_descriptor_that_is_not_available_is_left_alone(disk: Served, flags: int) -> None:
    """No livelock: kicked and looked at, it costs next to nothing, and the ring goes on later."""
    with guest_of(disk) as guest:
        queue = guest.queues[0]
        queue.packed.set_descriptor(0, HOLE, 16, 0, flags)
        queue.kick()
        works(guest, 1)
        pid = disk.status().queues[0].pid
        assert pid is not None
        before = processes.cpu_seconds(pid)
        assert not queue.err_bell.wait(0.5)
        assert processes.cpu_seconds(pid) - before < 0.2, "it goes round over nothing"
        assert queue.packed.descriptor(0) == (HOLE, 16, 0, flags)
        works(guest)


def test_c37_more_than_the_ring_has_breaks_it(disk: Served) -> None:
    """The driver goes on over slots which it has not got back: a whole ring is there already."""
    with guest_of(disk, size=4) as guest:
        queue = guest.queues[0]
        guest.enable_queue(0, False)
        queue.packed.offer_descriptors([(HOLE, 16, DESC_F_NEXT)] * 4)
        queue.ring.publish()
        guest.enable_queue(0)
        queue.kick()
        broken(guest)


def test_c37_ring_of_one_slot(disk: Served) -> None:
    with guest_of(disk, size=1) as guest:
        block = Block(guest)
        for _ in range(20):
            assert block.request(BlkType.IN, in_=[512], indirect=True).status == 0
        offer(guest, [(guest.ram.allocate(16).guest_addr, 16, DESC_F_NEXT)])
        assert guest.queues[0].err_bell.wait(AT_ONCE_S)
        assert until(lambda: guest.status() & Status.NEEDS_RESET)
    serves_newcomer(disk)


@pytest.mark.parametrize("without", [0, Feature.EVENT_IDX])
def test_c24_driver_writes_the_device_s_area(disk: Served, without: int) -> None:
    with guest_of(disk, without=without) as guest:
        queue = guest.queues[0]
        for garbage in ((0, 0), (0x7FFF, 2), (0xFFFF, 0xFFFF), (0x1234, 3), (START, 1)):
            queue.packed.device_event = garbage
            token = queue.submit([Block.header(BlkType.IN)], [512, 1], kick=True)
            assert queue.wait(token).data[1] == b"\0"
        works(guest)


@pytest.mark.parametrize("without", [0, Feature.EVENT_IDX])
def test_c25_driver_area_is_garbage(disk: Served, without: int) -> None:
    """More or fewer calls for this guest, and nothing else."""
    with guest_of(disk, without=without) as guest:
        queue = guest.queues[0]
        values = random.Random(25)
        for _ in range(200):
            token = queue.submit([Block.header(BlkType.IN)], [512, 1])
            queue.packed.driver_event = (values.randrange(0x10000), values.randrange(0x10000))
            assert queue.wait(token).data[1] == b"\0"
        works(guest)


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256])
@pytest.mark.parametrize("without", [0, Feature.EVENT_IDX])
def test_c30_full_ring_through_many_wraps(disk: Served, size: int, without: int) -> None:
    with guest_of(disk, size=size, without=without) as guest:
        job = Job(
            count=20_000, depth=size, block_size=512, span=1 << 20, poll=True, read_percent=50
        )
        stats = guest.load(0, job)
        assert (stats.completed, stats.failed) == (20_000, 0)
        slot, odd = 20_000 % size, 20_000 // size % 2
        position = slot if odd else slot | START
        assert guest.queues[0].ring.position == position | position << 16
        assert guest.stop_queue(0) == position | position << 16


def test_random_descriptors_hurt_nobody_else(disk: Served) -> None:
    """Whatever the ring holds: it is served, or breaks, or waits. The others and the next go on."""
    values = random.Random(37)
    for _ in range(20):
        with guest_of(disk) as guest:
            queue = guest.queues[0]
            for slot in range(SIZE):
                address = guest.ram.regions[0].guest_addr + values.randrange(2 << 20)
                flags = values.choice([values.randrange(0x10000), PACKED_DESC_F_AVAIL | 1, 0x8002])
                length = values.choice([0, 1, 16, 512, values.randrange(1 << 32)])
                # Not where its own rings are, or the answer to a good request.
                address += 4 << 20
                queue.packed.set_descriptor(slot, address, length, values.randrange(1 << 16), flags)
            queue.kick()
            works(guest, 1)
            guest.reset()
            works(guest)
    serves_newcomer(disk)
