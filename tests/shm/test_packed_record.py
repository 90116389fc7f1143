"""The in-flight record of a packed ring: its layout, its marks, and what a death leaves."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from tests.shm.guest import DATA, RING, fail, take
from tests.shm.packed_guest import DISABLE, ENTRY, HEADER, Entry, Header, PackedGuest, PackedMemory
from vuproc.errors import MemoryFault, RingError
from vuproc.shm.inflight import Recovered
from vuproc.shm.packed import PackedRing
from vuproc.shm.packed_record import PackedRecord
from vuproc.shm.request import Request
from vuproc.spec.inflight import INFLIGHT_PACKED_DESC, INFLIGHT_PACKED_HEADER, packed_record_bytes

SIZE = 8
WRITABLE = [(DATA, 8, True)]
BOTH = [(DATA, 8, False), (DATA + 64, 8, True)]
FRESH = 0x80008000


@pytest.fixture
def guest() -> Iterator[PackedGuest]:
    with PackedGuest(SIZE) as guest:
        yield guest
        assert guest.intact()


@pytest.fixture
def memory() -> Iterator[PackedMemory]:
    with PackedMemory(SIZE) as memory:
        yield memory


def start(guest: PackedGuest, memory: PackedMemory, base: int = FRESH) -> PackedRing:
    return guest.packed(base=base, record=memory.map(), fresh=True)


def restart(guest: PackedGuest, memory: PackedMemory) -> PackedRing:
    """The worker before has died; the ring goes on."""
    return guest.packed(base=None, record=memory.map())


def lengths(ring: PackedRing) -> list[int]:
    """Run what is there; the readable bytes of each."""
    seen: list[int] = []
    ring.drain(lambda request: seen.append(request.readable_total), fail, 100)
    return seen


def finish(ring: PackedRing, *requests: Request) -> None:
    for request in requests:
        request.finish()
    ring.publish()


class Death:
    """The record and the ring as a worker leaves them that dies inside the next publication."""

    def __init__(self, guest: PackedGuest, memory: PackedMemory) -> None:
        self.guest, self.memory = guest, memory
        self.record_before, self.ring_before = memory.bytes[:], self._ring()

    def _ring(self) -> bytes:
        return self.guest.read(RING, 16 * SIZE)

    def before_the_first_flags(self) -> None:
        """Between C3 and C4: all is written but the store that shows it."""
        after, ring = self.memory.header, self._ring()
        nexts = [self.memory[entry].next for entry in range(SIZE)]
        self.memory.bytes[:] = self.record_before
        for entry, number in enumerate(nexts):
            self.memory.set_entry(entry, next=number)
        before = self.memory.header
        self.memory.set_header(
            free_head=after.free_head, used_idx=after.used_idx, used_wrap=after.used_wrap
        )
        at = 16 * before.used_idx + 14
        self.guest.write(RING, ring)
        self.guest.write(RING + at, self.ring_before[at : at + 2])

    def after_the_first_flags(self) -> None:
        """Between C4 and C5: the driver sees the batch, and the record does not say so yet."""
        ring = self._ring()
        self.before_the_first_flags()
        self.guest.write(RING, ring)


def test_the_layout_is_the_specifications() -> None:
    assert (HEADER.size, ENTRY.size) == (32, 32)
    header = INFLIGHT_PACKED_HEADER.unpack(HEADER.pack(1, 2, 3, 4, 5, 6, 7, 1, 0, 9, 9, 9))
    assert list(header.values()) == [1, 2, 3, 4, 5, 6, 7, 1, 0]
    entry = INFLIGHT_PACKED_DESC.unpack(ENTRY.pack(1, 9, 2, 3, 4, 5, 6, 7, 8, 10))
    assert [entry[name] for name in ("inflight", "next", "last", "num", "counter")] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert [entry[name] for name in ("id", "flags", "len", "addr")] == [6, 7, 8, 10]


@pytest.mark.parametrize("size", [1, 2, 3, 127, 128, 1024, 32768])
def test_records_lie_as_far_apart_as_those_of_other_back_ends(size: int) -> None:
    # DPDK counts 29 bytes of header and aligns the sum.
    assert packed_record_bytes(size) == (29 + 32 * size + 63) // 64 * 64


def test_a35_a_record_is_mapped_only_if_its_file_holds_all_of_it(memory: PackedMemory) -> None:
    for offset in (8, 64, -8, 1 << 62):
        with pytest.raises(MemoryFault):
            PackedRecord(memory.fd, offset, SIZE)
    for size in (0, -1, 32769):
        with pytest.raises(ValueError, match=r"not in 1\.\.32768"):
            PackedRecord(memory.fd, 0, size)
    with pytest.raises(ValueError, match="8 entries and a ring of 4"), PackedGuest(4) as other:
        start(other, memory)


def test_a_request_leaves_its_marks(guest: PackedGuest, memory: PackedMemory) -> None:
    ring = start(guest, memory)
    assert memory.header == Header(0, 1, SIZE, 0, 0, 0, 0, 1, 1, 0, 0, 0)
    assert [memory[entry].next for entry in range(SIZE)] == list(range(1, SIZE + 1))
    guest.send(21, BOTH)
    guest.send(22, WRITABLE)
    seen: list[Entry] = []
    ring.resubmit = "drop"
    ring.drain(lambda _: seen.append(memory[0]), fail, 1)
    (held,) = take(ring)
    # One death inside, and the stage behind it; the flags are as they came.
    assert seen == [Entry(1, 0x11, 1, 1, 2, 0, 21, 0x81, 8, DATA)]
    assert (memory[1].addr, memory[1].flags, memory[1].id) == (DATA + 64, 0x82, 21)
    # The entries of the first are free again, in front.
    assert memory.header == Header(0, 1, SIZE, 0, 0, 2, 2, 1, 1, 0, 0, 0)[:3] + memory.header[3:]
    assert (memory.header.used_idx, memory.header.old_used_idx) == (2, 2)
    assert memory.live == [held.head] and memory[held.head].counter == 1
    finish(ring, held)
    assert (memory.live, memory.header.used_idx) == ([], 3)
    ring.stop()
    assert (memory.header.version, memory.header.ended) == (0, 1)


def test_what_was_in_flight_comes_again_in_the_order_of_its_fetch(
    guest: PackedGuest, memory: PackedMemory
) -> None:
    ring = start(guest, memory)
    for number, size in enumerate((1, 2, 3)):
        guest.send(number, [(DATA, size, False)])
    first, _, _ = take(ring)
    finish(ring, first)
    # Whose copy is all that is left: the used descriptor lies where the request did.
    ring = restart(guest, memory)
    assert len(ring.recovered) == 2 and ring.next_used == 0x8001
    guest.want(DISABLE)
    guest.calls()
    # One call whatever the driver wants: the last worker may have died before its own.
    assert (lengths(ring), guest.calls()) == ([2, 3], 1)
    assert guest.back_again() == [(0, 0), (1, 0), (2, 0)]


def test_a_chain_out_of_order_comes_again_from_its_copy(
    guest: PackedGuest, memory: PackedMemory
) -> None:
    ring = start(guest, memory)
    guest.send(0, [(DATA, 5, False), (DATA, 6, False)])
    guest.send(1, WRITABLE)
    _, second = take(ring)
    finish(ring, second)
    guest.back_again()
    # Slot 0, where the first one's first descriptor was, says by now that the second is done.
    ring = restart(guest, memory)
    assert lengths(ring) == [11]
    assert guest.back_again() == [(0, 0)]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_d22_a_death_before_the_batch_is_shown_runs_all_of_it_again(
    guest: PackedGuest, memory: PackedMemory, batch: int
) -> None:
    ring = start(guest, memory)
    for number in range(4):
        guest.send(number, BOTH)
    requests = take(ring)
    death = Death(guest, memory)
    finish(ring, *requests[:batch])
    guest.calls()
    death.before_the_first_flags()
    ring = restart(guest, memory)
    assert [found.head for found in ring.recovered] == [0, 2, 4, 6]
    assert memory.header.used_idx == memory.header.old_used_idx == 0
    # Nothing that C1 wrote behind the first is to be seen.
    assert guest.back_again() == []
    for slot in range(1, SIZE):
        flags = guest.word(RING + 16 * slot + 14)
        assert (flags >> 7 & 1, flags >> 15) == (1, 0)
    assert lengths(ring) == [8, 8, 8, 8]
    assert len(guest.back_again()) == 4


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_d20_d21_a_death_after_the_batch_is_shown_runs_none_of_it_again(
    guest: PackedGuest, memory: PackedMemory, batch: int
) -> None:
    """With 4 it is as long as the ring: the index comes back to where it was."""
    ring = start(guest, memory)
    for number in range(4):
        guest.send(number, BOTH)
    requests = take(ring)
    death = Death(guest, memory)
    finish(ring, *requests[:batch])
    death.after_the_first_flags()
    assert memory.header.used_idx == 2 * batch % SIZE
    assert len(memory.live) == 4
    ring = restart(guest, memory)
    assert len(ring.recovered) == 4 - batch
    assert lengths(ring) == [8] * (4 - batch)
    assert len(guest.back_again()) == 4
    assert memory.header.used_wrap == 0


def test_d20_the_driver_may_use_the_slot_again_before_the_record_knows(
    guest: PackedGuest, memory: PackedMemory
) -> None:
    ring = start(guest, memory)
    for number in range(4):
        guest.send(number, BOTH)
    requests = take(ring)
    death = Death(guest, memory)
    finish(ring, requests[0])
    death.after_the_first_flags()
    assert guest.back_again() == [(0, 0)]
    guest.send(9, BOTH)
    ring = restart(guest, memory)
    assert lengths(ring) == [8, 8, 8, 8]
    assert guest.back_again() == [(1, 0), (2, 0), (3, 0), (9, 0)]


def test_d23_a_mark_ahead_of_the_list_is_no_request(
    guest: PackedGuest, memory: PackedMemory
) -> None:
    start(guest, memory)
    guest.send(3, WRITABLE)
    # F3 was done, F4 was not.
    memory.set_entry(0, inflight=1, num=1, last=0)
    ring = restart(guest, memory)
    assert (ring.recovered, memory.live) == ((), [])
    assert lengths(ring) == [0]


def test_a_length_that_a_dead_worker_wrote_is_not_taken_for_the_drivers(
    guest: PackedGuest, memory: PackedMemory
) -> None:
    ring = start(guest, memory)
    guest.send(0, BOTH)
    (request,) = take(ring)
    death = Death(guest, memory)
    finish(ring, request)
    death.before_the_first_flags()
    ring = restart(guest, memory)
    assert ring.recovered == (Recovered(0, 0, 0),)
    # It cannot be fetched from the ring any more, so a stop leaves it in the record.
    assert (ring.stop(), ring.kept) == (0x80008002, 1)
    assert lengths(restart(guest, memory)) == [8]


def test_what_is_as_the_driver_wrote_it_is_taken_back_by_a_stop(
    guest: PackedGuest, memory: PackedMemory
) -> None:
    ring = start(guest, memory)
    for number in range(3):
        guest.send(number, BOTH)
    take(ring)
    ring = restart(guest, memory)
    assert len(ring.recovered) == 3
    assert (ring.stop(), ring.kept) == (FRESH, 0)
    assert (memory.live, memory.header.version) == ([], 0)
    assert lengths(restart(guest, memory)) == [8, 8, 8]


def test_a_stop_after_a_death_takes_back_those_that_nobody_has_followed(
    guest: PackedGuest, memory: PackedMemory
) -> None:
    ring = start(guest, memory)
    for number in range(3):
        guest.send(number, BOTH)
    finish(ring, take(ring)[1])
    ring = restart(guest, memory)
    assert len(ring.recovered) == 2
    # The second came after the first, and is done; the third is the last of all.
    first, last = take(ring)
    last.release()
    finish(ring, first)
    assert (ring.outstanding, ring.kept) == (1, 0)
    ring.stop()
    assert (ring.kept, memory.live, memory.header.version) == (0, [], 0)
    assert lengths(restart(guest, memory)) == [8]


def test_a_ring_goes_on_where_its_record_ended(guest: PackedGuest, memory: PackedMemory) -> None:
    ring = start(guest, memory, 0x00058003)
    assert (ring.next_avail, ring.next_used) == (0x8003, 5)
    ring.stop()
    ring = restart(guest, memory)
    assert (ring.next_avail, ring.next_used) == (0x8003, 5)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"version": 2}, "has version 2"),
        ({"features": 1}, "has features 0x1"),
        ({"desc_num": 9}, "is for 9 descriptors"),
        ({"used_idx": SIZE}, "stands at slots"),
        ({"old_used_idx": 0xFFFF}, "stands at slots"),
        ({"used_wrap": 2}, "has wrap counters"),
        ({"lead": SIZE + 1}, "slots behind"),
        ({"old_free_head": SIZE + 1, "free_head": SIZE + 1}, "does not belong there"),
        ({"old_free_head": 3, "free_head": 3}, "has lost entry 2"),
        ({"old_used_idx": 7}, "has a free list without an end|has lost|frees entry"),
    ],
)
def test_a_record_that_contradicts_itself_breaks_the_ring(
    guest: PackedGuest, memory: PackedMemory, fields: dict[str, int], cause: str
) -> None:
    ring = start(guest, memory)
    guest.send(0, BOTH)
    take(ring)
    memory.set_header(**fields)
    if "old_used_idx" in fields and fields["old_used_idx"] == 7:
        # A list that never comes to its end.
        memory.set_header(free_head=5)
        memory.set_entry(5, next=5)
    before = memory.bytes[:], guest.bytes[:]
    with pytest.raises(RingError, match=f"in-flight record.*({cause})"):
        restart(guest, memory)
    assert (memory.bytes[:], guest.bytes[:]) == before


@pytest.mark.parametrize(
    ("entry", "fields", "cause"),
    [
        (0, {"inflight": 2}, "has a mark of 2"),
        (0, {"num": 0}, "has 0 descriptors"),
        (0, {"num": 9}, "has 9 descriptors"),
        (0, {"num": 3}, "in the request of entry 0"),
        (0, {"num": 1}, "ends the request"),
        (0, {"last": 5}, "ends the request"),
        (0, {"next": 0}, "in the request of entry 0"),
        (0, {"next": 0xFFFF}, "in the request of entry 0"),
        (2, {"next": 2}, "does not belong there"),
        (2, {"next": 0xFFFF}, "does not belong there"),
        (7, {"next": 0}, "does not belong there"),
    ],
)
def test_an_entry_that_contradicts_the_others_breaks_the_ring(
    guest: PackedGuest, memory: PackedMemory, entry: int, fields: dict[str, int], cause: str
) -> None:
    ring = start(guest, memory)
    guest.send(0, BOTH)
    take(ring)
    memory.set_entry(entry, **fields)
    before = memory.bytes[:], guest.bytes[:]
    with pytest.raises(RingError, match=f"in-flight record.*{cause}"):
        restart(guest, memory)
    assert (memory.bytes[:], guest.bytes[:]) == before


def test_what_changes_in_the_record_after_the_recovery_is_not_followed(
    guest: PackedGuest, memory: PackedMemory
) -> None:
    ring = start(guest, memory)
    guest.send(0, BOTH)
    take(ring)
    ring = restart(guest, memory)
    memory.set_entry(0, next=0x7FFF, last=0x7FFF, num=SIZE)
    memory.set_header(free_head=0x7FFF, old_free_head=0x7FFF, used_idx=0x7FFF)
    assert lengths(ring) == [8]
    assert guest.back_again() == [(0, 0)]
    assert memory.header.used_idx == 2


@pytest.mark.parametrize("seed", range(100))
def test_no_record_leads_out_of_memory(seed: int) -> None:
    """Each word of it anything at all: it recovers, or it says why not."""
    rng = random.Random(seed)
    with PackedGuest(4) as guest, PackedMemory(4) as memory:
        ring = guest.packed(base=FRESH, record=memory.map(), fresh=True)
        for number in range(2):
            guest.send(number, BOTH)
        held = take(ring)
        finish(ring, *held[: rng.randrange(2)])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(8, len(memory.bytes) - 2)
            value = rng.choice((0, 1, 2, 3, 4, 5, 0xFF, rng.randrange(0x10000)))
            struct.pack_into("<H", memory.bytes, at, value)
        try:
            ring = restart(guest, memory)
            ring.drain(lambda _: None, fail, 10)
            ring.stop()
        except RingError:
            pass
        assert guest.intact()
