"""The driver side of a packed ring against a device side in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.testing.toy_packed import AVAIL, DESC, DISABLE, ENABLE, NEXT, USED, WRITE, ToyPacked
from tests.testing.toy_split import Segment
from vuproc.testing.errors import BackendFault, RingFull
from vuproc.testing.memory import RamRegion
from vuproc.testing.packed_ring import PackedDriverRing, packed_layout

SIZE = 7
START = 0x8000
CHAIN = ((0x1000, 16, False), (0x2000, 4096, True), (0x3000, 1, True))
ONE = ((0x1000, 1, True),)


@dataclass
class Pair:
    region: RamRegion
    ring: PackedDriverRing
    device: ToyPacked


@contextmanager
def made(
    size: int = SIZE, *, event_idx: bool = False, avail: int = START, used: int | None = None
) -> Iterator[Pair]:
    """A ring and its device; both begin at `avail`, or with the slots from `used` on in flight."""
    used = avail if used is None else used
    desc, driver, device, length = packed_layout(size)
    region = RamRegion(1 << 20, (length | 0xFFFF) + 1)
    try:
        block = region.allocate(length, 4096)
        assert block is not None and block.offset == 0
        ring = PackedDriverRing(
            region.buffer,
            size,
            desc=desc,
            driver_event=driver,
            device_event=device,
            base=avail | used << 16,
            event_idx=event_idx,
        )
        ring.begin()
        toy = ToyPacked(region, size, desc=desc, driver=driver, device=device)
        toy.start_at(avail, used)
        yield Pair(region, ring, toy)
    finally:
        region.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with made() as it:
        yield it


@pytest.fixture
def event_pair() -> Iterator[Pair]:
    with made(event_idx=True) as it:
        yield it


def turn(pair: Pair, slots: int) -> None:
    """Use so many slots, one after the other, so that the ring stands somewhere else."""
    for _ in range(slots):
        pair.ring.add(ONE)
        pair.ring.publish()
        (buffer,) = pair.device.fetch()
        pair.device.complete(buffer)
        assert pair.ring.reap() == [(buffer.id, 0)]


@pytest.mark.parametrize("size", [1, 2, 7, 100, 32768])
def test_layout_is_aligned_and_ends_behind_the_event_areas(size: int) -> None:
    desc, driver, device, length = packed_layout(size)
    assert desc == 0
    assert driver >= 16 * size and driver % 4 == 0
    assert device >= driver + 4 and device % 4 == 0
    assert length == device + 4


@pytest.mark.parametrize("size", [0, 32769])
def test_size_that_is_none_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"not in 1\.\.32768"):
        PackedDriverRing(
            bytearray(1 << 20), size, desc=0, driver_event=1 << 19, device_event=(1 << 19) + 4
        )


@pytest.mark.parametrize(
    ("desc", "driver", "device"), [(8, 512, 516), (0, 510, 516), (0, 512, 1022), (1008, 512, 516)]
)
def test_area_that_is_not_aligned_or_outside_is_refused(
    desc: int, driver: int, device: int
) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        PackedDriverRing(bytearray(1024), SIZE, desc=desc, driver_event=driver, device_event=device)


@pytest.mark.parametrize("base", [0x8007_8000, 0x8000_8007, 0x8001_8000, 0x8000_0001])
def test_base_that_is_in_no_such_ring_is_refused(base: int) -> None:
    with pytest.raises(ValueError, match=r"position|in flight"):
        PackedDriverRing(
            bytearray(1024), SIZE, desc=0, driver_event=512, device_event=516, base=base
        )


def test_chain_is_seen_whole_by_the_device(pair: Pair) -> None:
    id = pair.ring.add(CHAIN)
    assert pair.device.fetch() == []
    assert pair.ring.publish()
    (buffer,) = pair.device.fetch()
    assert (buffer.id, buffer.slots) == (id, 3)
    assert buffer.segments == tuple(Segment(*segment) for segment in CHAIN)
    assert pair.ring.free == SIZE - 3


def test_only_the_first_descriptor_of_all_is_held_back(pair: Pair) -> None:
    pair.ring.add(CHAIN)
    pair.ring.add(ONE)
    flags = [pair.device.read(slot)[3] for slot in range(5)]
    assert flags == [0, AVAIL | WRITE | NEXT, AVAIL | WRITE, AVAIL | WRITE, 0]
    pair.ring.publish()
    assert pair.device.read(0)[3] == AVAIL | NEXT
    assert [buffer.slots for buffer in pair.device.fetch()] == [3, 1]


def test_chain_over_the_end_of_the_ring_has_both_wraps(pair: Pair) -> None:
    turn(pair, SIZE - 1)
    pair.ring.add(CHAIN)
    pair.ring.publish()
    flags = [pair.device.read(slot)[3] for slot in (SIZE - 1, 0, 1)]
    assert flags == [AVAIL | NEXT, USED | WRITE | NEXT, USED | WRITE]
    (buffer,) = pair.device.fetch()
    assert buffer.segments == tuple(Segment(*segment) for segment in CHAIN)
    pair.device.complete(buffer, 4097)
    assert pair.ring.reap() == [(buffer.id, 4097)]
    assert pair.ring.position == 0x0002_0002


def test_indirect_chain_takes_one_descriptor(pair: Pair) -> None:
    table = pair.region.allocate(48)
    assert table is not None
    pair.ring.add(CHAIN, (table.guest_addr, table.view))
    pair.ring.publish()
    (buffer,) = pair.device.fetch()
    assert buffer.slots == 1
    assert buffer.segments == tuple(Segment(*segment) for segment in CHAIN)
    assert pair.ring.free == SIZE - 1


def test_indirect_table_too_small_is_refused_and_takes_nothing(pair: Pair) -> None:
    with pytest.raises(ValueError, match="indirect table"):
        pair.ring.add(CHAIN, (0x1000, bytearray(47)))
    assert pair.ring.free == SIZE
    assert not pair.ring.publish()


def test_full_ring_says_what_is_missing(pair: Pair) -> None:
    pair.ring.add(ONE * 6)
    with pytest.raises(RingFull) as caught:
        pair.ring.add(ONE * 2)
    assert (caught.value.wanted, caught.value.free) == (2, 1)
    pair.ring.add(ONE)
    with pytest.raises(RingFull):
        pair.ring.add(ONE, (0x1000, bytearray(16)))


def test_completed_chains_come_back_in_the_device_order(pair: Pair) -> None:
    ids = [pair.ring.add(ONE * count) for count in (1, 3, 2)]
    pair.ring.publish()
    buffers = pair.device.fetch()
    for buffer in reversed(buffers):
        pair.device.complete(buffer, 100 + buffer.id)
    assert pair.ring.reap(2) == [(id, 100 + id) for id in (ids[2], ids[1])]
    assert pair.ring.free == SIZE - 1 and pair.ring.pending
    assert pair.ring.reap() == [(ids[0], 100 + ids[0])]
    assert pair.ring.free == SIZE and not pair.ring.pending


def test_length_of_a_chain_that_was_not_written_to_counts_for_nothing(pair: Pair) -> None:
    id = pair.ring.add(ONE)
    pair.ring.publish()
    (buffer,) = pair.device.fetch()
    pair.device.complete(buffer)
    assert pair.ring.descriptor(0)[1] == 0xDEAD
    assert pair.ring.reap() == [(id, 0)]


@pytest.mark.parametrize("id", [SIZE - 2, SIZE, 0xFFFF])
def test_id_that_is_not_in_flight_is_the_device_fault(pair: Pair, id: int) -> None:
    assert pair.ring.add(ONE) == SIZE - 1
    pair.ring.publish()
    pair.device.write_used(id)
    with pytest.raises(BackendFault, match=f"buffer id {id},"):
        pair.ring.reap()


def test_id_returned_twice_is_the_device_fault(pair: Pair) -> None:
    pair.ring.add(ONE)
    pair.ring.publish()
    (buffer,) = pair.device.fetch()
    pair.device.complete(buffer)
    pair.device.complete(buffer)
    with pytest.raises(BackendFault):
        pair.ring.reap()


def test_nothing_is_used_in_a_ring_that_starts_in_the_middle() -> None:
    for position in (START | 3, 3, 0):
        with made(avail=position) as it:
            assert it.ring.position == position | position << 16
            assert not it.device.available()
            for _ in range(2 * SIZE):
                assert not it.ring.pending
                turn(it, 1)
            assert it.ring.position == position | position << 16, "two rounds: the same place"


def test_descriptors_of_somebody_else_are_never_free() -> None:
    with made(avail=2, used=START | 5) as it:
        assert it.ring.free == SIZE - 4
        turn(it, 3 * SIZE)
        assert it.ring.free == SIZE - 4


def test_kicks_follow_the_device_flags_without_event_idx(pair: Pair) -> None:
    wanted: list[bool] = []
    for flags in (ENABLE, DISABLE, DESC, 3, ENABLE):
        pair.device.ask(flags, START | len(wanted))
        pair.ring.add(ONE)
        wanted.append(pair.ring.publish())
    assert wanted == [True, False, False, False, True]
    assert not pair.ring.publish(), "nothing new was published"


def test_kick_only_when_the_device_position_is_passed(event_pair: Pair) -> None:
    ring, device = event_pair.ring, event_pair.device
    device.ask(DESC, START | 2)
    wanted = []
    for count in (1, 1, 1, 1):
        ring.add(ONE * count)
        wanted.append(ring.publish())
    assert wanted == [False, False, True, False]


def test_kick_when_the_position_lies_within_a_chain_or_a_batch(event_pair: Pair) -> None:
    event_pair.device.ask(DESC, START | 3)
    event_pair.ring.add(ONE)
    event_pair.ring.add(CHAIN)
    assert event_pair.ring.publish()


def test_kick_at_a_position_of_the_next_round_or_of_none(event_pair: Pair) -> None:
    ring, device = event_pair.ring, event_pair.device
    turn(event_pair, SIZE - 1)
    for off_wrap, kicked in ((START, False), (1, True), (SIZE, False), (START | 0x7FFF, False)):
        device.ask(DESC, off_wrap)
        ring.add(CHAIN)
        assert ring.publish() == kicked, hex(off_wrap)
        (buffer,) = device.fetch()
        device.complete(buffer)
        ring.reap()
        device.ask(ENABLE)
        turn(event_pair, 2 * SIZE - 3)


def test_arm_says_what_is_there_already(event_pair: Pair) -> None:
    ring, device = event_pair.ring, event_pair.device
    turn(event_pair, SIZE - 1)
    assert not ring.arm()
    assert ring.driver_event == (START | (SIZE - 1), DESC)
    ring.add(CHAIN)
    ring.publish()
    (buffer,) = device.fetch()
    device.complete(buffer)
    assert ring.arm()
    ring.reap()
    assert not ring.arm()
    assert ring.driver_event == (2, DESC)


@pytest.mark.parametrize("event_idx", [False, True])
def test_disarm_asks_for_no_calls(event_idx: bool) -> None:
    with made(event_idx=event_idx) as it:
        it.ring.disarm()
        assert it.ring.driver_event[1] == DISABLE
        assert not it.ring.arm()
        assert it.ring.driver_event == ((START, DESC) if event_idx else (0, ENABLE))


def test_ring_of_one_descriptor_goes_round(event_pair: Pair) -> None:
    with made(1, event_idx=True) as it:
        turn(it, 5)
        assert it.ring.position == 0


def test_hostile_descriptors_are_written_as_given(pair: Pair) -> None:
    ring = pair.ring
    id = ring.offer_descriptors([(1, 2, NEXT), (3, 4, WRITE | 0x10)])
    assert ring.offer_descriptors([(5, 6, 0)], id=0xFFFF) == 0xFFFF
    ring.publish()
    assert ring.descriptor(0) == (1, 2, id, AVAIL | NEXT)
    assert ring.descriptor(1) == (3, 4, id, AVAIL | WRITE | 0x10)
    assert ring.descriptor(2) == (5, 6, 0xFFFF, AVAIL)
    assert [buffer.id for buffer in pair.device.fetch()] == [id, 0xFFFF]
    assert ring.free == SIZE - 3
    with pytest.raises(RingFull):
        ring.offer_descriptors([(0, 0, 0)] * 5)
    ring.set_descriptor(6, 7, 8, 9, 10)
    assert ring.descriptor(6) == (7, 8, 9, 10)
    ring.avail_position = 4
    ring.add(ONE)
    ring.publish()
    assert ring.descriptor(4)[3] == USED | WRITE
    with pytest.raises(ValueError, match="available position 0x7"):
        ring.avail_position = 7
    with pytest.raises(IndexError):
        ring.set_descriptor(SIZE, 0, 0)


def test_event_areas_can_be_set_to_anything(pair: Pair) -> None:
    pair.ring.driver_event = (0xFFFF, 0xFFFE)
    pair.ring.device_event = (0x1234, 3)
    assert pair.ring.driver_event == (0xFFFF, 0xFFFE)
    assert pair.ring.device_event == (0x1234, 3)
    pair.ring.used_position = 5
    assert pair.ring.used_position == 5
