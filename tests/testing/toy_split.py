"""The device side of a split ring in plain Python, for tests of the driver side alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vuproc.testing.memory import RamRegion

NEXT, WRITE, INDIRECT = 1, 2, 4


@dataclass(frozen=True)
class Segment:
    """One descriptor as the device sees it."""

    address: int
    length: int
    writable: bool


class ToySplit:
    """Reads what the driver published and returns used elements; no barriers, one thread."""

    def __init__(self, region: RamRegion, size: int, *, desc: int, avail: int, used: int) -> None:
        self.region = region
        self.size = size
        self.memory = region.buffer
        self.desc, self.avail, self.used = desc, avail, used
        self.seen = 0
        self.returned = 0

    def word(self, at: int) -> int:
        return int.from_bytes(self.memory[at : at + 2], "little")

    def store(self, at: int, value: int) -> None:
        self.memory[at : at + 2] = (value & 0xFFFF).to_bytes(2, "little")

    @property
    def used_event(self) -> int:
        return self.word(self.avail + 4 + 2 * self.size)

    def ask_for_kick_at(self, index: int) -> None:
        self.store(self.used + 4 + 8 * self.size, index)

    def want_kicks(self, wanted: bool) -> None:
        self.store(self.used, 0 if wanted else 1)

    def fetch(self) -> list[int]:
        """The heads published since the last look."""
        heads = []
        while self.seen != self.word(self.avail + 2):
            heads.append(self.word(self.avail + 4 + 2 * (self.seen % self.size)))
            self.seen = (self.seen + 1) & 0xFFFF
        return heads

    def chain(self, head: int) -> list[Segment]:
        """The segments of a chain, through its indirect table if it has one."""
        table, index, chain = self.desc, head, []
        while True:
            at = table + 16 * index
            address, length, flags, following = struct.unpack_from("<QIHH", self.memory, at)
            if flags & INDIRECT:
                assert not flags & NEXT
                table, index = address - self.region.guest_addr, 0
                continue
            chain.append(Segment(address, length, bool(flags & WRITE)))
            if not flags & NEXT:
                return chain
            index = following

    def complete(self, head: int, length: int = 0) -> None:
        at = self.used + 4 + 8 * (self.returned % self.size)
        self.memory[at : at + 8] = struct.pack("<II", head, length)
        self.returned = (self.returned + 1) & 0xFFFF
        self.store(self.used + 2, self.returned)
