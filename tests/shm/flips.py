"""A ring whose memory has bits flipped at any moment: descriptors, indices, event areas, indirect
tables, and the in-flight record, between bytes that nobody may touch.
"""

from __future__ import annotations

import mmap
import os
import random
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from tests.shm.guest import DATA, F_INDIRECT, INDIRECT, NEXT, RING, WRITE, Guest, places
from tests.shm.guest import write_table as write_split_table
from tests.shm.packed_guest import FRESH, PackedGuest, Place
from vuproc.shm.inflight import SplitRecord, record_bytes
from vuproc.shm.packed_record import PackedRecord
from vuproc.shm.ring import Ring
from vuproc.spec.inflight import packed_record_bytes

SIZE = 8
TABLES = DATA + 0x1000
"""Where indirect tables lie, one for each head."""
TABLE_BYTES = 0x40
RECORD_HEAD = 96
"""Bytes of a record with its header and first entries, which are the ones in use."""
GUARD = 0xA5

Parts = list[tuple[int, int, bool]]
"""Address, length, whether the device may write."""


class GuardedRecord:
    """A file with room for one record, and guard bytes on both sides of it."""

    def __init__(self, length: int) -> None:
        self.offset = length
        self.end = 2 * length
        self.fd = os.memfd_create("record", os.MFD_CLOEXEC)
        # All of each page that the record lies in: what is written there is seen.
        os.ftruncate(self.fd, (3 * length + mmap.PAGESIZE - 1) & -mmap.PAGESIZE)
        self.bytes = mmap.mmap(self.fd, 0)
        self.bytes[: self.offset] = bytes([GUARD]) * self.offset
        self.bytes[self.end :] = bytes([GUARD]) * (len(self.bytes) - self.end)

    def intact(self) -> bool:
        """No byte outside the record was written."""
        around = self.bytes[: self.offset] + self.bytes[self.end :]
        return not around.strip(bytes([GUARD]))

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)


class Flipped(ABC):
    """A guest with one ring and its record, and whoever flips bits of them."""

    guest: Guest

    def __init__(self, choose: random.Random, features: int, record_length: int) -> None:
        self.choose = choose
        self.features = features
        self.record = GuardedRecord(record_length)
        self.heads = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.record.close()
        self.guest.__exit__(kind, error, traceback)

    def flip(self, count: int) -> None:
        """Flip so many bits, each of a place that is as likely as the others."""
        for _ in range(count):
            memory, start, end = self.choose.choice(self.spots())
            memory[self.choose.randrange(start, end)] ^= 1 << self.choose.randrange(8)

    def spots(self) -> list[tuple[mmap.mmap, int, int]]:
        """Where bits may flip: memory, first byte, end. The record's head is twice there."""
        areas = [*self.areas(), (TABLES, SIZE * TABLE_BYTES)]
        found = [(self.guest.bytes, *places(at, length)[0]) for at, length in areas]
        record = self.record
        for end in (record.end, record.offset + RECORD_HEAD):
            found.append((record.bytes, record.offset, end))
        return found

    def send(self) -> None:
        """A good request, direct or in a table."""
        self.heads = (self.heads + 1) % SIZE
        parts = [(DATA, 16, False), (DATA + 0x100, 8, False), (DATA + 0x200, 32, True)]
        chosen = self.choose.choice([parts, parts[1:], parts[2:], parts[:1]])
        tables = 0.4 if self.features & F_INDIRECT else 0.01
        self.offer(self.heads, chosen, table=self.choose.random() < tables)

    def intact(self) -> bool:
        """No byte outside of what the guest shows was written."""
        return self.guest.intact() and self.record.intact()

    @abstractmethod
    def areas(self) -> list[tuple[int, int]]:
        """The ring's parts: guest address, length."""

    @abstractmethod
    def offer(self, head: int, parts: Parts, *, table: bool) -> None:
        """Make a request available."""

    @abstractmethod
    def start(self) -> Ring:
        """A driver sets the ring up anew; the record holds what it may."""

    @abstractmethod
    def restart(self) -> Ring:
        """The worker before has died; the ring goes on, or RingError."""


class FlippedSplit(Flipped):
    """A split ring."""

    def __init__(self, choose: random.Random, features: int = F_INDIRECT) -> None:
        super().__init__(choose, features, record_bytes(SIZE))
        self.guest = Guest(SIZE)

    def areas(self) -> list[tuple[int, int]]:
        guest = self.guest
        return [
            (guest.desc, 16 * SIZE),
            (guest.avail, 6 + 2 * SIZE),
            (guest.used, 6 + 8 * SIZE),
        ]

    def offer(self, head: int, parts: Parts, *, table: bool) -> None:
        if table:
            at = TABLES + head * TABLE_BYTES
            last = len(parts) - 1
            entries = [
                (addr, length, (WRITE if writable else 0) | (NEXT if i < last else 0), i + 1)
                for i, (addr, length, writable) in enumerate(parts)
            ]
            write_split_table(self.guest, at, entries)
            self.guest.set_desc(head, at, 16 * len(entries), INDIRECT)
        else:
            # Three descriptors at most, and not over the end of the table.
            head = min(head, SIZE - 3)
            self.guest.chain(head, parts)
        self.guest.offer(head)

    def start(self) -> Ring:
        guest = self.guest
        guest.write(RING, bytes(guest.used + 6 + 8 * SIZE - RING))
        guest.offered = guest.taken = 0
        return guest.ring(self.features, base=0, chain_limit=SIZE, record=self._map(), fresh=True)

    def restart(self) -> Ring:
        return self.guest.ring(self.features, chain_limit=SIZE, record=self._map())

    def _map(self) -> SplitRecord:
        return SplitRecord(self.record.fd, self.record.offset, SIZE)


class FlippedPacked(Flipped):
    """A packed ring."""

    guest: PackedGuest

    def __init__(self, choose: random.Random, features: int = F_INDIRECT) -> None:
        super().__init__(choose, features, packed_record_bytes(SIZE))
        self.guest = PackedGuest(SIZE)

    def areas(self) -> list[tuple[int, int]]:
        guest = self.guest
        return [(guest.desc, 16 * SIZE), (guest.driver, 4), (guest.device, 4)]

    def offer(self, head: int, parts: Parts, *, table: bool) -> None:
        if table:
            self.guest.send_table(head, TABLES + head * TABLE_BYTES, parts)
        else:
            self.guest.send(head, parts)

    def start(self) -> Ring:
        guest = self.guest
        guest.write(RING, bytes(16 * SIZE + 8))
        guest.next, guest.back = Place.of(FRESH), Place.of(FRESH)
        guest.lengths.clear()
        return guest.packed(self.features, chain_limit=SIZE, record=self._map(), fresh=True)

    def restart(self) -> Ring:
        return self.guest.packed(self.features, base=None, chain_limit=SIZE, record=self._map())

    def _map(self) -> PackedRecord:
        return PackedRecord(self.record.fd, self.record.offset, SIZE)
