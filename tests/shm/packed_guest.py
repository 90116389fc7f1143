"""A driver of a packed ring in plain Python, over the memory of `tests.shm.guest`."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from tests.shm.guest import F_INDIRECT, INDIRECT, NEXT, RING, WRITE, Guest, user
from vuproc.shm.counters import QueueCounters
from vuproc.shm.packed import PackedRing
from vuproc.shm.packed_record import PackedRecord

AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2
FRESH = 0x8000
HEADER = struct.Struct("<QHHHHHHBBHHB5x")
ENTRY = struct.Struct("<BBHHHQHHIQ")


@dataclass
class Place:
    """A slot and its wrap counter."""

    slot: int
    wrap: int

    @staticmethod
    def of(base: int) -> Place:
        return Place(base & 0x7FFF, base >> 15 & 1)

    def bits(self) -> int:
        return self.slot | self.wrap << 15

    def step(self, by: int, size: int) -> None:
        self.slot += by
        if self.slot >= size:
            self.slot -= size
            self.wrap ^= 1


class PackedGuest(Guest):
    """Guest memory with one packed ring of `size` slots at RING."""

    def __init__(self, size: int = 8, base: int = FRESH) -> None:
        super().__init__(size)
        self.set_used_idx(0)
        self.write(RING, bytes(16 * size + 64))
        self.driver = RING + 16 * size
        self.device = self.driver + 4
        self.next = Place.of(base)
        self.back = Place.of(base)
        self.lengths: dict[int, int] = {}
        """Slots by the id of each buffer that is out."""

    def packed(
        self,
        features: int = F_INDIRECT,
        *,
        base: int | None = FRESH | FRESH << 16,
        chain_limit: int = 0,
        counters: QueueCounters | None = None,
        record: PackedRecord | None = None,
        fresh: bool = False,
    ) -> PackedRing:
        """The device side of the ring, notifying through `call`."""
        made = PackedRing(
            3,
            self.size,
            self.memory,
            user(self.desc),
            user(self.driver),
            user(self.device),
            base,
            features=features,
            chain_limit=chain_limit,
            counters=counters,
            record=record,
            fresh=fresh,
        )
        made.set_call(self.call)
        return made

    def send(
        self,
        buffer_id: int,
        parts: list[tuple[int, int, bool]],
        extra: int = 0,
        *,
        bare: bool = False,
    ) -> None:
        """Make a chain of (address, length, device may write) available, its first slot last.

        `bare`: the later slots' bits say that they were used in the round before. Those of two
        rounds before would say that they are used by now.
        """
        first = Place(self.next.slot, self.next.wrap)
        flags = 0
        for i, (addr, length, writable) in enumerate(parts):
            flags = (WRITE if writable else 0) | (NEXT if i < len(parts) - 1 else 0) | extra
            flags |= AVAIL if self.next.wrap else USED
            shown = flags if i else flags ^ (AVAIL | USED)
            if i and bare:
                before = 0 if self.next.wrap else AVAIL | USED
                shown = flags & ~(AVAIL | USED) | before
            self.write(self._at(self.next), struct.pack("<QIHH", addr, length, buffer_id, shown))
            if i == 0:
                first_flags = flags
            self.next.step(1, self.size)
        self.lengths[buffer_id] = len(parts)
        self.set_word(self._at(first) + 14, first_flags)

    def send_table(self, buffer_id: int, at: int, parts: list[tuple[int, int, bool]]) -> None:
        """The same as one indirect descriptor, whose table lies at `at`."""
        table = b"".join(
            struct.pack("<QIHH", addr, length, 0, WRITE if writable else 0)
            for addr, length, writable in parts
        )
        self.write(at, table)
        self.send(buffer_id, [(at, len(table), False)], INDIRECT)

    def back_again(self) -> list[tuple[int, int]]:
        """(id, length) of what has come back since the last time."""
        found = []
        while self.lengths:
            _, length, buffer_id, flags = struct.unpack("<QIHH", self.read(self._at(self.back), 16))
            if (flags >> 7 & 1, flags >> 15) != (self.back.wrap, self.back.wrap):
                break
            self.back.step(self.lengths.pop(buffer_id), self.size)
            found.append((buffer_id, length))
        return found

    def want(self, flags: int, off_wrap: int = 0) -> None:
        """What the driver's event area says."""
        self.write(self.driver, struct.pack("<HH", off_wrap, flags))

    @property
    def wish(self) -> tuple[int, int]:
        """What the device's event area says: its flags, and the place."""
        off_wrap, flags = struct.unpack("<HH", self.read(self.device, 4))
        return flags, off_wrap

    def _at(self, place: Place) -> int:
        return self.desc + 16 * place.slot


class Header(NamedTuple):
    """QueueRegionPacked, with what lies in its padding."""

    features: int
    version: int
    desc_num: int
    free_head: int
    old_free_head: int
    used_idx: int
    old_used_idx: int
    used_wrap: int
    old_used_wrap: int
    word_end: int
    lead: int
    ended: int


class Entry(NamedTuple):
    """DescStatePacked."""

    inflight: int
    state: int
    next: int
    last: int
    num: int
    counter: int
    id: int
    flags: int
    len: int
    addr: int


class PackedMemory:
    """The record of a queue of `size` entries, whose every byte a test may read and write."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("record", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, HEADER.size + ENTRY.size * size)
        self.bytes = mmap.mmap(self.fd, 0)

    def __enter__(self) -> PackedMemory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bytes.close()
        os.close(self.fd)

    def map(self) -> PackedRecord:
        """As a ring takes it."""
        return PackedRecord(self.fd, 0, self.size)

    @property
    def header(self) -> Header:
        return Header._make(HEADER.unpack_from(self.bytes))

    def __getitem__(self, entry: int) -> Entry:
        return Entry._make(ENTRY.unpack_from(self.bytes, HEADER.size + ENTRY.size * entry))

    def set_header(self, **fields: int) -> None:
        """Change some fields."""
        HEADER.pack_into(self.bytes, 0, *self.header._replace(**fields))

    def set_entry(self, entry: int, **fields: int) -> None:
        """Change some fields."""
        at = HEADER.size + ENTRY.size * entry
        ENTRY.pack_into(self.bytes, at, *self[entry]._replace(**fields))

    @property
    def live(self) -> list[int]:
        """The marked heads, in the order in which they were fetched."""
        marked = [entry for entry in range(self.size) if self[entry].inflight]
        return sorted(marked, key=lambda entry: self[entry].counter)
