"""The driver of a crash test with a packed ring."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.crash.driver import TABLES, Driver, Wrong
from tests.shm.packed_guest import AVAIL, DESC, DISABLE, ENTRY, HEADER, USED, PackedGuest, Place


class PackedDriver(Driver):
    """Its requests are called by buffer ids, which are no slots and no entries of the record."""

    guest: PackedGuest

    def _make(self) -> PackedGuest:
        scenario = self.scenario
        guest = PackedGuest(scenario.size)
        guest.next = self._place(scenario.base)
        guest.back = self._place(scenario.base - scenario.lost)
        for ahead in range(scenario.size):
            # What is before the base was used in its round, the rest in the round before; or lost.
            place = self._place(scenario.base - scenario.size + ahead)
            bits = AVAIL | USED if place.wrap else 0
            if ahead >= scenario.size - scenario.lost:
                bits = AVAIL if place.wrap else USED
            guest.set_word(guest.desc + 16 * place.slot + 14, bits)
        return guest

    def _place(self, number: int) -> Place:
        rounds, slot = divmod(number, self.scenario.size)
        return Place(slot, 1 - rounds % 2)

    def _number(self, place: Place) -> int:
        return place.slot + (1 - place.wrap) * self.scenario.size

    def _names(self) -> list[int]:
        return list(range(self.scenario.size - self.scenario.lost))

    def end(self) -> int:
        slots = sum(self.guest.lengths.values())
        begin = self._place(self._number(self.guest.next) - slots)
        return begin.bits() | self.guest.back.bits() << 16

    def end_if_kept(self) -> int | None:
        # A batch that was begun and not published has overwritten a slot: nobody may fetch again
        # from there.
        if not self.scenario.held:
            return None
        return self.guest.next.bits() | self.guest.back.bits() << 16

    def base(self) -> int:
        """At which the ring begins."""
        used = self._place(self.scenario.base - self.scenario.lost)
        return self._place(self.scenario.base).bits() | used.bits() << 16

    def record_bytes(self) -> int:
        return HEADER.size + ENTRY.size * self.scenario.size

    def marks(self) -> Iterator[int]:
        return iter(range(HEADER.size, self.record_bytes(), ENTRY.size))

    def _offer(self, heads: list[int]) -> bool:
        guest, modulus = self.guest, 2 * self.scenario.size
        old = self._number(guest.next)
        for head in heads:
            first = self._number(guest.next)
            parts = self._parts(head)
            if self.scenario.indirect or (self.scenario.mixed and self.waiting[head] % 2):
                guest.send_table(head, TABLES + 32 * head, parts)
            else:
                guest.send(head, parts, bare=self.scenario.bare)
            for number in range(first, first + guest.lengths[head]):
                # The driver's writes are not the device's to mark.
                at = 16 * (number % guest.size)
                self.used_copy[at : at + 16] = guest.read(guest.desc + at, 16)
        flags, event = guest.wish
        if flags != DESC:
            return flags != DISABLE
        new = self._number(guest.next)
        passed = (new - self._number(Place.of(event)) - 1) % modulus
        return passed < (new - old) % modulus

    def _reap(self) -> list[tuple[int, int]]:
        guest, found = self.guest, []
        while self._has_more():
            at = guest.desc + 16 * guest.back.slot
            _, length, name, _ = struct.unpack("<QIHH", guest.read(at, 16))
            if name not in guest.lengths:
                raise Wrong(f"buffer {name} came back and was not outstanding")
            guest.back.step(guest.lengths.pop(name), guest.size)
            found.append((name, length))
        return found

    def _has_more(self) -> bool:
        if not self.guest.lengths:
            # With nothing outstanding the slot is what the last round has left. A driver that does
            # not set the bits of later descriptors may find one that looks used.
            return False
        flags = self.guest.word(self.guest.desc + 16 * self.guest.back.slot + 14)
        return flags & (AVAIL | USED) == (AVAIL | USED if self.guest.back.wrap else 0)

    def _used_page(self) -> int:
        return self.guest.desc

    def _used(self) -> bytes:
        guest = self.guest
        return guest.read(guest.desc, 16 * guest.size) + guest.read(guest.device, 4)

    def _want_interrupt(self) -> None:
        if not self.scenario.event_idx:
            return
        ahead = 3 * sum(self.guest.lengths.values()) // 4 if self.scenario.lazy else 0
        place = self._place(self._number(self.guest.back) + ahead)
        self.guest.want(DESC, place.bits())
