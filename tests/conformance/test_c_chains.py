"""Catalogue rows C1 to C22: what a hostile driver writes into its ring."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest

from tests.conformance.checks import BROKEN_WITHIN_S, broken, reaped, works
from vuproc.spec.blk import BlkStatus, BlkType
from vuproc.spec.virtio import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Feature
from vuproc.testing.block import NO_STATUS, Block, outcome
from vuproc.testing.guest import Guest
from vuproc.testing.memory import RamRegion
from vuproc.testing.serve import Served

SIZE = 128
Descriptor = tuple[int, int, int, int]
"""Address, length, flags, next."""


def table(descriptors: Sequence[Descriptor]) -> bytes:
    return b"".join(struct.pack("<QIHH", *descriptor) for descriptor in descriptors)


def offer(guest: Guest, descriptors: Sequence[Descriptor], *, head: int = 0) -> None:
    """Write descriptors from index 0 on, offer `head` and kick."""
    queue = guest.queues[0]
    for index, descriptor in enumerate(descriptors):
        queue.split.set_descriptor(index, *descriptor)
    queue.split.offer_head(head)
    queue.ring.publish()
    queue.kick()


def offer_indirect(
    guest: Guest,
    content: bytes,
    *,
    length: int | None = None,
    address: int | None = None,
    flags: int = DESC_F_INDIRECT,
) -> None:
    """Offer one descriptor that points to a table of any content, length and address."""
    block = guest.ram.allocate(max(16, len(content)))
    block.view[: len(content)] = content
    where = block.guest_addr if address is None else address
    offer(guest, [(where, len(content) if length is None else length, flags, 1)])


class Parts:
    """Buffers of a good read request."""

    def __init__(self, guest: Guest, sector: int = 0) -> None:
        self.header, self.data, self.status = (guest.ram.allocate(size) for size in (16, 512, 1))
        self.header.view[:] = Block.header(BlkType.IN, sector)

    def chain(self, *, indices: Sequence[int] = (0, 1, 2)) -> list[Descriptor]:
        return [
            (self.header.guest_addr, 16, DESC_F_NEXT, indices[1]),
            (self.data.guest_addr, 512, DESC_F_NEXT | DESC_F_WRITE, indices[2]),
            (self.status.guest_addr, 1, DESC_F_WRITE, 0),
        ]


@pytest.mark.parametrize("head", [SIZE, SIZE + 1, 0x7FFF, 0xFFFF])
def test_c01_head_that_is_no_descriptor(disk: Served, head: int) -> None:
    with disk.guest(queues=2) as guest:
        offer(guest, [], head=head)
        broken(guest)
        assert guest.queues[0].split.used_element(0) != (head, 0)


@pytest.mark.parametrize("jump", [SIZE + 1, 0x4000, 0x8000])
def test_c02_avail_index_jumps_too_far(disk: Served, jump: int) -> None:
    with disk.guest(queues=2) as guest:
        guest.queues[0].split.avail_index = jump
        guest.queues[0].kick()
        broken(guest)


@pytest.mark.parametrize("back", [1, 2, SIZE])
def test_c03_avail_index_goes_backwards(disk: Served, back: int) -> None:
    with disk.guest(queues=2) as guest:
        works(guest)
        ring = guest.queues[0].split
        ring.avail_index = (ring.avail_index - back) & 0xFFFF
        guest.queues[0].kick()
        broken(guest)


@pytest.mark.parametrize("next_index", [SIZE, 0xFFFF])
def test_c06_next_outside_of_the_table(disk: Served, next_index: int) -> None:
    with disk.guest(queues=2) as guest:
        parts = Parts(guest)
        offer(guest, [(parts.header.guest_addr, 16, DESC_F_NEXT, next_index)])
        broken(guest)


LOOPS: dict[str, Callable[[Parts], list[Descriptor]]] = {
    "self": lambda p: [(p.header.guest_addr, 16, DESC_F_NEXT, 0)],
    "self_zero_length": lambda p: [(p.header.guest_addr, 0, DESC_F_NEXT, 0)],
    "two": lambda p: [(p.header.guest_addr, 16, DESC_F_NEXT, i ^ 1) for i in range(2)],
    "two_zero_length": lambda p: [(0, 0, DESC_F_NEXT, i ^ 1) for i in range(2)],
    "behind_a_good_start": lambda p: [
        *p.chain()[:2],
        (p.status.guest_addr, 1, DESC_F_WRITE | DESC_F_NEXT, 1),
    ],
    "all_writable": lambda p: [(p.data.guest_addr, 1, DESC_F_NEXT | DESC_F_WRITE, 0)],
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS.keys())
def test_c07_chain_that_never_ends(disk: Served, loop: Callable[[Parts], list[Descriptor]]) -> None:
    with disk.guest(queues=2) as guest:
        offer(guest, loop(Parts(guest)))
        broken(guest)


def test_c07_chain_through_the_whole_table_is_no_loop(disk: Served) -> None:
    with disk.guest(queues=1) as guest:
        data = [4] * (SIZE - 2)
        answer = Block(guest).request(BlkType.IN, 0, in_=[512 - 4 * (SIZE - 3), *data[1:]])
        assert answer.status == BlkStatus.OK


def test_c08_chain_longer_than_the_ring(disk: Served) -> None:
    """All descriptors, and then one of them again."""
    with disk.guest(queues=2) as guest:
        parts = Parts(guest)
        address = parts.header.guest_addr
        offer(guest, [(address, 1, DESC_F_NEXT, (i + 1) % SIZE) for i in range(SIZE)])
        broken(guest)


def test_c09_zero_length_descriptors_are_empty_segments(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        block = Block(guest)
        content = bytes(range(256)) * 4
        outgoing = [b"", content[:512], b"", b"", content[512:], b""]
        assert block.request(BlkType.OUT, 8, outgoing).status == BlkStatus.OK
        answer = block.request(BlkType.IN, 8, in_=[0, 100, 0, 924, 0])
        assert (answer.status, answer.data) == (BlkStatus.OK, content)
        works(guest)


def test_c09_chain_of_nothing_but_zero_lengths(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        assert guest.do(0, [b"", b""], [0, 0]).written == 0
        works(guest)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, (16 << 20) + 1])
def test_c10_length_beyond_all_memory(disk: Served, length: int) -> None:
    with disk.guest(queues=2) as guest:
        parts = Parts(guest)
        chain = parts.chain()
        chain[1] = (parts.data.guest_addr, length, *chain[1][2:])
        offer(guest, chain)
        broken(guest)


def test_c10_lengths_that_add_up_to_more_than_32_bits(disk: Served) -> None:
    """Each part is memory, and the same memory: together they pass 2^32."""
    with disk.guest(queues=2) as guest:
        half = 1 << 31
        guest.add_memory(RamRegion(1 << 40, half))
        parts = Parts(guest)
        body = [(1 << 40, half, DESC_F_NEXT | DESC_F_WRITE, index) for index in (2, 3, 4)]
        offer(guest, [parts.chain()[0], *body, (parts.status.guest_addr, 1, DESC_F_WRITE, 0)])
        broken(guest)


@pytest.mark.parametrize("address", [0, 0xFFFFF, 1 << 40, (1 << 64) - 16])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_c11_address_that_is_no_memory(disk: Served, address: int, part: int) -> None:
    with disk.guest(queues=2) as guest:
        chain = Parts(guest).chain()
        chain[part] = (address, *chain[part][1:])
        offer(guest, chain)
        broken(guest)


def test_c12_readable_behind_writable(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        parts = Parts(guest)
        offer(
            guest,
            [
                (parts.status.guest_addr, 1, DESC_F_WRITE | DESC_F_NEXT, 1),
                (parts.header.guest_addr, 16, 0, 0),
            ],
        )
        broken(guest)


def test_c13_only_writable_descriptors(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        answer = outcome(guest.do(0, [], [512, 1]))
        assert answer.status in (BlkStatus.IOERR, BlkStatus.UNSUPP)
        works(guest)


def test_c13_only_readable_descriptors(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        answer = guest.do(0, [Block.header(BlkType.FLUSH), b"more"], [])
        assert (answer.written, outcome(answer).status) == (0, NO_STATUS)
        works(guest)


@pytest.mark.parametrize("length", [0, 1, 15])
def test_c14_header_shorter_than_it_must_be(disk: Served, length: int) -> None:
    with disk.guest(queues=2) as guest:
        answer = outcome(guest.do(0, [Block.header(BlkType.IN)[:length]], [512, 1]))
        assert answer.status in (BlkStatus.IOERR, BlkStatus.UNSUPP)
        works(guest)


def test_c14_header_split_over_descriptors(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        block, content = Block(guest), bytes(range(256)) * 2
        block.write(3, content)
        header = Block.header(BlkType.IN, 3)
        answer = outcome(guest.do(0, [header[:1], header[1:9], header[9:]], [512, 1]))
        assert (answer.status, answer.data) == (BlkStatus.OK, content)
        # And the other way round: header and data in one.
        answer = outcome(guest.do(0, [Block.header(BlkType.OUT, 4) + content], [1]))
        assert answer.status == BlkStatus.OK
        assert block.read(4, 512) == content


@pytest.mark.parametrize("length", [0, 1, 15, 17, 47])
def test_c15_indirect_table_that_is_not_whole(disk: Served, length: int) -> None:
    with disk.guest(queues=2) as guest:
        offer_indirect(guest, table(Parts(guest).chain()), length=length)
        broken(guest)


@pytest.mark.parametrize("entries", [257, 65536, 0x0FFFFFFF])
def test_c16_indirect_table_that_is_too_long(disk: Served, entries: int) -> None:
    """More than the largest ring of the device; the table is never read to its end."""
    with disk.guest(queues=2) as guest:
        offer_indirect(guest, table(Parts(guest).chain()), length=16 * entries)
        broken(guest)


def test_c16_indirect_table_as_long_as_the_largest_ring(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        sizes = [2] * 253 + [518]
        answer = Block(guest).request(BlkType.IN, 0, in_=sizes, indirect=True)
        assert (answer.status, len(answer.data)) == (BlkStatus.OK, 1024)


def test_c17_indirect_inside_indirect(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        inner = guest.ram.allocate(48)
        inner.view[:] = table(Parts(guest).chain())
        offer_indirect(guest, table([(inner.guest_addr, 48, DESC_F_INDIRECT, 0)]))
        broken(guest)


def test_c18_indirect_with_next(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        parts = Parts(guest)
        guest.queues[0].split.set_descriptor(1, parts.status.guest_addr, 1, DESC_F_WRITE)
        offer_indirect(guest, table(parts.chain()), flags=DESC_F_INDIRECT | DESC_F_NEXT)
        broken(guest)


def test_c19_indirect_without_the_feature(disk: Served) -> None:
    with disk.guest(queues=2, without=Feature.INDIRECT_DESC) as guest:
        works(guest)
        offer_indirect(guest, table(Parts(guest).chain()))
        broken(guest)


@pytest.mark.parametrize("address", [0, 1 << 40, (1 << 64) - 16, (1 << 20) + (16 << 20) - 16])
def test_c20_indirect_table_that_is_not_wholly_memory(disk: Served, address: int) -> None:
    with disk.guest(queues=2) as guest:
        offer_indirect(guest, table(Parts(guest).chain()), address=address)
        broken(guest)


@pytest.mark.proves("VIRTIO_F_INDIRECT_DESC", front_end="built-in")
def test_c20_indirect_table_over_two_adjacent_regions(disk: Served) -> None:
    """Gathered through the same check as data, or refused: never read past its region."""
    low, high = RamRegion(1 << 30, 1 << 20), RamRegion((1 << 30) + (1 << 20), 1 << 20)
    with disk.guest(queues=2) as guest:
        guest.add_memory(low)
        guest.add_memory(high)
        parts = Parts(guest)
        content = table(parts.chain())
        low.buffer[-24:], high.buffer[:24] = content[:24], content[24:]
        parts.status.view[:] = b"\xff"
        queue = guest.queues[0]
        queue.split.take_descriptors(1)
        offer(guest, [(high.guest_addr - 24, 48, DESC_F_INDIRECT, 0)])
        assert reaped(queue) == [(0, 513)]
        assert parts.status.view[0] == BlkStatus.OK


def test_c21_indirect_table_that_loops(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        chain = Parts(guest).chain()
        chain[2] = (*chain[2][:2], DESC_F_WRITE | DESC_F_NEXT, 1)
        offer_indirect(guest, table(chain))
        broken(guest)


@pytest.mark.parametrize("next_index", [3, 255, 0xFFFF])
def test_c21_indirect_next_outside_of_its_table(disk: Served, next_index: int) -> None:
    with disk.guest(queues=2) as guest:
        chain = Parts(guest).chain()
        chain[0] = (*chain[0][:3], next_index)
        offer_indirect(guest, table(chain))
        broken(guest)


@pytest.mark.parametrize("flags", [DESC_F_INDIRECT | DESC_F_WRITE, DESC_F_INDIRECT | 0xFFF8])
def test_c22_write_and_unknown_flags_on_an_indirect_descriptor_are_ignored(
    disk: Served, flags: int
) -> None:
    with disk.guest(queues=2) as guest:
        parts = Parts(guest)
        parts.status.view[:] = b"\xff"
        ring = guest.queues[0].split
        assert ring.take_descriptors(1) == 0
        offer_indirect(guest, table(parts.chain()), flags=flags)
        assert reaped(guest.queues[0]) == [(0, 513)]
        assert parts.status.view[0] == BlkStatus.OK


def test_c22_unknown_flags_on_a_direct_descriptor_are_ignored(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        parts = Parts(guest)
        parts.status.view[:] = b"\xff"
        ring = guest.queues[0].split
        assert ring.take_descriptors(3) == 0
        offer(guest, [(a, n, flags | 0xFFF8, link) for a, n, flags, link in parts.chain()])
        assert reaped(guest.queues[0]) == [(0, 513)]
        assert parts.status.view[0] == BlkStatus.OK


def test_broken_ring_is_announced_on_the_back_end_channel(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        channel = guest.front_end.open_channel()
        offer(guest, [], head=0xFFFF)
        news = channel.receive(BROKEN_WITHIN_S)
        assert news is not None
        assert news.name == "CONFIG_CHANGE_MSG"
        broken(guest)


def test_broken_ring_revives_by_stop_and_start_without_a_reset(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        works(guest)
        offer(guest, [], head=0xFFFF)
        assert guest.queues[0].err_bell.wait(BROKEN_WITHIN_S)
        assert 0 <= guest.stop_queue(0) <= 0xFFFF
        guest.start_queue(0)
        works(guest)


def test_broken_ring_revives_by_reset_device(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        offer(guest, [], head=0xFFFF)
        assert guest.queues[0].err_bell.wait(BROKEN_WITHIN_S)
        guest.front_end.request("RESET_DEVICE")
        assert guest.status() == 0
        guest.front_end.set_features(guest.front_end.features)
        for index in range(2):
            guest.start_queue(index)
        works(guest)


def test_broken_ring_disturbs_nobody_who_comes_next(disk: Served) -> None:
    for _ in range(10):
        with disk.guest(queues=4) as guest:
            for queue in guest.queues.values():
                queue.split.offer_head(0xFFFF)
                queue.ring.publish()
                queue.kick()
            assert guest.queues[3].err_bell.wait(BROKEN_WITHIN_S)
    with disk.guest(queues=4) as guest:
        works(guest)
