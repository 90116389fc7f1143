"""The driver ring against a device side in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testing.toy_split import Segment, ToySplit
from vuproc.testing.errors import BackendFault, RingFull
from vuproc.testing.memory import RamRegion
from vuproc.testing.split_ring import SplitDriverRing, split_layout

SIZE = 8


@dataclass
class Pair:
    region: RamRegion
    ring: SplitDriverRing
    device: ToySplit


def make_pair(*, event_idx: bool = False, base: int = 0, size: int = SIZE) -> Pair:
    region = RamRegion(1 << 20, 1 << 16)
    desc, avail, used, length = split_layout(size)
    block = region.allocate(length, 4096)
    assert block is not None and block.offset == 0
    ring = SplitDriverRing(
        region.buffer, size, desc=desc, avail=avail, used=used, base=base, event_idx=event_idx
    )
    ring.begin()
    device = ToySplit(region, size, desc=desc, avail=avail, used=used)
    device.seen = device.returned = base
    return Pair(region, ring, device)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = make_pair()
    yield made
    made.region.close()


@pytest.fixture
def event_pair() -> Iterator[Pair]:
    made = make_pair(event_idx=True)
    yield made
    made.region.close()


def test_layout_is_aligned_and_ends_behind_the_event_words() -> None:
    for power in range(1, 16):
        size = 1 << power
        desc, avail, used, length = split_layout(size)
        assert desc == 0
        assert avail == 16 * size
        assert used >= avail + 6 + 2 * size
        assert used % 4 == 0
        assert length == used + 6 + 8 * size


@pytest.mark.parametrize("size", [0, 3, 100, 65536])
def test_size_that_is_no_power_of_two_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        SplitDriverRing(bytearray(1 << 20), size, desc=0, avail=1 << 18, used=1 << 19)


def test_area_outside_its_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        SplitDriverRing(
            bytearray(16 * SIZE + 100), SIZE, desc=0, avail=16 * SIZE, used=16 * SIZE + 40
        )


def test_chain_is_seen_whole_by_the_device(pair: Pair) -> None:
    segments = [(0x1000, 16, False), (0x2000, 4096, True), (0x3000, 1, True)]
    head = pair.ring.add(segments)
    assert pair.device.fetch() == []
    assert pair.ring.publish()
    assert pair.device.fetch() == [head]
    assert pair.device.chain(head) == [Segment(*segment) for segment in segments]
    assert pair.ring.free == SIZE - 3


def test_indirect_chain_takes_one_descriptor(pair: Pair) -> None:
    table = pair.region.allocate(48)
    assert table is not None
    segments = [(0x1000, 16, False), (0x2000, 4096, True), (0x3000, 1, True)]
    pair.ring.add(segments, (table.guest_addr, table.view))
    pair.ring.publish()
    (head,) = pair.device.fetch()
    assert pair.device.chain(head) == [Segment(*segment) for segment in segments]
    assert pair.ring.free == SIZE - 1


def test_indirect_table_too_small_is_refused_and_takes_nothing(pair: Pair) -> None:
    with pytest.raises(ValueError, match="indirect table"):
        pair.ring.add([(0, 1, False), (0, 1, True)], (0x1000, bytearray(16)))
    assert pair.ring.free == SIZE


def test_full_ring_says_what_is_missing(pair: Pair) -> None:
    pair.ring.add([(0, 1, True)] * 6)
    with pytest.raises(RingFull) as caught:
        pair.ring.add([(0, 1, True)] * 3)
    assert (caught.value.wanted, caught.value.free) == (3, 2)


def test_completed_chains_come_back_in_the_device_order(pair: Pair) -> None:
    heads = [pair.ring.add([(0, 1, True)] * 2) for _ in range(3)]
    pair.ring.publish()
    for head in reversed(heads):
        pair.device.complete(head, 100 + head)
    assert pair.ring.reap() == [(head, 100 + head) for head in reversed(heads)]
    assert pair.ring.free == SIZE


@pytest.mark.parametrize("head", [1, SIZE, 0xFFFFFFFF])
def test_head_that_is_not_in_flight_is_the_device_fault(pair: Pair, head: int) -> None:
    assert pair.ring.add([(0, 1, True)]) == 0
    pair.ring.publish()
    pair.device.complete(head)
    with pytest.raises(BackendFault, match=f"head {head},"):
        pair.ring.reap()


def test_head_returned_twice_is_the_device_fault(pair: Pair) -> None:
    head = pair.ring.add([(0, 1, True)])
    pair.ring.publish()
    pair.device.complete(head)
    pair.device.complete(head)
    with pytest.raises(BackendFault):
        pair.ring.reap()


def test_no_kick_when_the_device_wants_none(pair: Pair) -> None:
    pair.device.want_kicks(False)
    pair.ring.add([(0, 1, True)])
    assert not pair.ring.publish()
    pair.device.want_kicks(True)
    pair.ring.add([(0, 1, True)])
    assert pair.ring.publish()
    assert not pair.ring.publish(), "nothing new was published"


def test_kick_only_when_avail_event_is_passed(event_pair: Pair) -> None:
    event_pair.device.ask_for_kick_at(1)
    event_pair.ring.add([(0, 1, True)])
    assert not event_pair.ring.publish()
    event_pair.ring.add([(0, 1, True)])
    assert event_pair.ring.publish()
    event_pair.ring.add([(0, 1, True)])
    assert not event_pair.ring.publish()


def test_arm_says_what_is_there_already(event_pair: Pair) -> None:
    ring, device = event_pair.ring, event_pair.device
    assert not ring.arm()
    assert device.used_event == 0
    head = ring.add([(0, 1, True)])
    ring.publish()
    device.complete(head)
    assert ring.arm()
    assert ring.reap() == [(head, 0)]
    assert not ring.arm()
    assert device.used_event == 1


def test_arm_and_disarm_use_the_flag_without_event_idx(pair: Pair) -> None:
    pair.ring.disarm()
    assert pair.ring.avail_flags == 1
    assert not pair.ring.arm()
    assert pair.ring.avail_flags == 0


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_every_chain_comes_back_exactly_once_over_the_wrap(data: st.DataObject) -> None:
    pair = make_pair(base=0xFFF0, event_idx=data.draw(st.booleans()))
    try:
        in_flight: dict[int, int] = {}
        for _ in range(data.draw(st.integers(1, 60))):
            count = data.draw(st.integers(1, 4))
            if count <= pair.ring.free:
                head = pair.ring.add([(0, 1, True)] * count)
                assert head not in in_flight
                in_flight[head] = count
                pair.ring.publish()
            pair.device.fetch()
            for head in (
                data.draw(st.lists(st.sampled_from(sorted(in_flight)), unique=True))
                if (in_flight)
                else ()
            ):
                pair.device.complete(head, head)
                del in_flight[head]
            for head, length in pair.ring.reap():
                assert head == length
                assert head not in in_flight
            assert pair.ring.free == SIZE - sum(in_flight.values())
    finally:
        pair.region.close()
