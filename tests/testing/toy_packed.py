"""The device side of a packed ring in plain Python, for tests of the driver side alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.testing.toy_split import Segment
from vuproc.testing.memory import RamRegion

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2


@dataclass
class Cursor:
    """A side's place in a ring of `size` slots; the wrap counter turns at its end."""

    size: int
    slot: int = 0
    wrap: bool = True

    def advance(self, slots: int) -> None:
        for _ in range(slots):
            self.slot += 1
            if self.slot == self.size:
                self.slot, self.wrap = 0, not self.wrap

    @property
    def off_wrap(self) -> int:
        return self.slot + (0x8000 if self.wrap else 0)


@dataclass(frozen=True)
class Buffer:
    """One chain as the device sees it."""

    id: int
    slots: int
    segments: tuple[Segment, ...]


class ToyPacked:
    """Reads what the driver published and writes used descriptors; no barriers, one thread."""

    def __init__(self, region: RamRegion, size: int, *, desc: int, driver: int, device: int):
        self.region = region
        self.memory = region.buffer
        self.desc, self.driver, self.device = desc, driver, device
        self.next = Cursor(size)
        self.returned = Cursor(size)

    def start_at(self, avail: int, used: int) -> None:
        """Go on at these positions, as from SET_VRING_BASE."""
        for cursor, position in ((self.next, avail), (self.returned, used)):
            cursor.slot, cursor.wrap = position & 0x7FFF, bool(position & 0x8000)

    def read(self, slot: int) -> tuple[int, int, int, int]:
        """The descriptor in a slot: address, length, id, flags."""
        return self._unpack(self.desc + 16 * slot)

    def available(self) -> bool:
        """Whether the descriptor at the next position is the device's."""
        flags = self.read(self.next.slot)[3]
        return bool(flags & AVAIL) == self.next.wrap and bool(flags & USED) != self.next.wrap

    def fetch(self) -> list[Buffer]:
        """The chains published since the last look."""
        buffers = []
        while self.available():
            buffers.append(self._chain())
        return buffers

    def complete(self, buffer: Buffer, written: int | None = None) -> None:
        """Return a chain: one used descriptor, and its other slots are passed over."""
        self.write_used(buffer.id, written)
        self.returned.advance(buffer.slots)

    def write_used(self, id: int, written: int | None = None) -> None:
        """A used descriptor at the next position. written: None if the chain was not written to."""
        flags = AVAIL | USED if self.returned.wrap else 0
        if written is not None:
            flags |= WRITE
        at = self.desc + 16 * self.returned.slot + 8
        # What a device leaves in the length of a chain that it did not write to counts for nothing.
        length = 0xDEAD if written is None else written
        self.memory[at : at + 8] = struct.pack("<IHH", length, id, flags)

    def wants_call(self, before: int, slots: int) -> bool:
        """Whether the driver asked for a call if `slots` are returned from `before` on."""
        off_wrap, flags = struct.unpack_from("<HH", self.memory, self.driver)
        if flags != DESC:
            return bool(flags == ENABLE)
        cursor = Cursor(self.next.size, before & 0x7FFF, bool(before & 0x8000))
        for _ in range(slots):
            if cursor.off_wrap == off_wrap:
                return True
            cursor.advance(1)
        return False

    def ask(self, flags: int, off_wrap: int = 0) -> None:
        """Ask for kicks: always, never, or when the descriptor at `off_wrap` is available."""
        self.memory[self.device : self.device + 4] = struct.pack("<HH", off_wrap, flags)

    def _chain(self) -> Buffer:
        segments: list[Segment] = []
        slots = 0
        while True:
            assert self.available(), "a chain ends in the middle"
            address, length, id, flags = self.read(self.next.slot)
            self.next.advance(1)
            slots += 1
            if flags & INDIRECT:
                assert not flags & NEXT
                segments += self._table(address - self.region.guest_addr, length)
            else:
                segments.append(Segment(address, length, bool(flags & WRITE)))
            if not flags & NEXT:
                return Buffer(id, slots, tuple(segments))

    def _table(self, offset: int, length: int) -> list[Segment]:
        table = []
        for at in range(offset, offset + length, 16):
            address, size, _id, flags = self._unpack(at)
            assert not flags & ~WRITE, "nothing but WRITE counts in a table"
            table.append(Segment(address, size, bool(flags & WRITE)))
        return table

    def _unpack(self, at: int) -> tuple[int, int, int, int]:
        address, length, id, flags = struct.unpack_from("<QIHH", self.memory, at)
        return int(address), int(length), int(id), int(flags)
