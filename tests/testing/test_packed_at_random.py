"""Random traffic on the driver side of a packed ring, against a model of who owns what."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.testing.test_packed_ring import Pair, made
from tests.testing.toy_packed import DESC, DISABLE, ENABLE, Buffer, Cursor, ToyPacked
from tests.testing.toy_split import Segment

SIZES = st.one_of(st.integers(1, 9), st.sampled_from([16, 33, 100]))
SEGMENTS = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.booleans()),
    min_size=1,
    max_size=6,
)


class Traffic:
    """A driver and a device that do what `data` says; everything is checked as it happens."""

    def __init__(self, pair: Pair, data: st.DataObject) -> None:
        self.ring, self.device, self.region = pair.ring, pair.device, pair.region
        self.data = data
        self.offered: list[tuple[int, tuple[Segment, ...]]] = []
        self.flying: dict[int, int] = {}
        self.fetched: list[Buffer] = []
        self.completed: list[tuple[int, int]] = []

    def offer(self) -> None:
        """One chain or more, direct or in a table, published together."""
        start, slots = Cursor(self.ring.size, self.device.next.slot, self.device.next.wrap), 0
        for _ in range(self.data.draw(st.integers(1, 3))):
            chain = self.data.draw(SEGMENTS)
            indirect = self.data.draw(st.booleans())
            count = 1 if indirect else len(chain)
            if count > self.ring.free:
                continue
            table = self.region.allocate(16 * len(chain)) if indirect else None
            name = self.ring.add(chain, (table.guest_addr, table.view) if table else None)
            assert name not in self.flying
            self.flying[name] = count
            self.offered.append((name, tuple(Segment(*segment) for segment in chain)))
            slots += count
        assert not self.device.available(), "nothing is seen before it is published"
        assert self.ring.publish() == kick_wanted(self.device, start, slots)

    def fetch(self) -> None:
        """The device takes all, in the order in which it was offered, and asks for the next."""
        buffers = self.device.fetch()
        assert [(buffer.id, buffer.segments) for buffer in buffers] == self.offered
        assert all(self.flying[buffer.id] == buffer.slots for buffer in buffers)
        self.offered.clear()
        self.fetched += buffers
        ahead = Cursor(self.ring.size, self.device.next.slot, self.device.next.wrap)
        ahead.advance(self.data.draw(st.integers(0, self.ring.size - 1)))
        self.device.ask(self.data.draw(st.sampled_from([ENABLE, DISABLE, DESC])), ahead.off_wrap)

    def complete(self) -> None:
        """The device returns some, in any order, and calls if it is asked to."""
        chosen = self.data.draw(st.lists(st.sampled_from(self.fetched), unique=True))
        before, slots = self.device.returned.off_wrap, 0
        armed = self.data.draw(st.booleans())
        idle = not self.completed
        if armed:
            assert self.ring.arm() == (not idle)
        else:
            self.ring.disarm()
        for buffer in chosen:
            written = self.data.draw(st.none() | st.integers(0, 2**32 - 1))
            self.device.complete(buffer, written)
            self.fetched.remove(buffer)
            self.completed.append((buffer.id, written or 0))
            slots += buffer.slots
        if armed and idle:
            assert self.device.wants_call(before, slots) == bool(chosen)
        elif not armed:
            assert not self.device.wants_call(before, slots)

    def reap(self) -> None:
        """The driver takes back what was returned, or a part of it."""
        limit = self.data.draw(st.integers(0, 4))
        assert self.ring.pending == bool(self.completed)
        assert self.ring.reap(limit) == self.completed[:limit]
        for name, _ in self.completed[:limit]:
            del self.flying[name]
        del self.completed[:limit]
        assert self.ring.free == self.ring.size - sum(self.flying.values())


def kick_wanted(device: ToyPacked, start: Cursor, slots: int) -> bool:
    """What the device asked for, by walking from where the last fetch ended."""
    off_wrap, flags = struct.unpack_from("<HH", device.memory, device.device)
    if not slots or flags == DISABLE:
        return False
    if flags == ENABLE:
        return True
    places = []
    for _ in range(slots):
        places.append(start.off_wrap)
        start.advance(1)
    return off_wrap in places


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_chain_comes_back_exactly_once(data: st.DataObject) -> None:
    size = data.draw(SIZES)
    position = data.draw(st.integers(0, size - 1)) | data.draw(st.sampled_from([0, 0x8000]))
    with made(size, event_idx=True, avail=position) as pair:
        traffic = Traffic(pair, data)
        for _ in range(data.draw(st.integers(1, 25))):
            traffic.offer()
            traffic.fetch()
            if traffic.fetched:
                traffic.complete()
            traffic.reap()
        while traffic.completed:
            traffic.reap()
        for buffer in traffic.fetched:
            pair.device.complete(buffer, 1)
        assert sorted(name for name, _ in pair.ring.reap()) == sorted(traffic.flying)
        assert pair.ring.free == size and not pair.ring.pending
        returned = pair.device.returned.off_wrap
        assert pair.ring.position == returned | returned << 16
