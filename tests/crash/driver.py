"""The guest's side of a crash test: a driver that trusts interrupts and checks everything."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from tests.crash.scenario import Scenario
from tests.shm.guest import DATA, INDIRECT, NEXT, WRITE, Guest, descriptor
from vuproc.shm.inflight import record_bytes

TABLES = DATA + 0x8000
LENGTH = 8
PAGE = 4096
LOG_BYTES = 64
"""Of the dirty log: enough for the pages of the guest's regions."""
SECTOR = 512
EMPTY = 0xFF
"""What stands where the device is to write."""
NO_NOTIFY = 1


def answer(number: int) -> bytes:
    """What the device is to write for request `number`."""
    return (number ^ 0x5A5A5A5A5A5A5A5A).to_bytes(LENGTH, "little")


def writes(number: int) -> bool:
    """Whether request `number` of a disk is a write of its answer; the others read it."""
    return number % 2 == 1


class Wrong(Exception):
    """The ring or the device broke a promise, as the driver sees it."""


class Driver:
    """Numbers its requests 1, 2, ... in the order of the avail ring."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.guest = self._make()
        self.image = -1
        if scenario.device == "blk":
            self.image = os.memfd_create("image", os.MFD_CLOEXEC)
            os.ftruncate(self.image, SECTOR * (scenario.total + 1))
            for number in range(scenario.total + 1):
                if not writes(number):
                    os.pwrite(self.image, answer(number), SECTOR * number)
        self.log = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.log, LOG_BYTES)
        self.stride = PAGE if scenario.logged else 64
        self.used_copy = bytearray(self._used())
        """The used ring, when its page was taken from the log for the last time."""
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.free = self._names()
        self.waiting: dict[int, int] = {}
        self.lengths: dict[int, int] = {}
        """Used length by number."""
        self.sent = 0
        self.kicks = 0
        """Sent to the present worker, with those that its predecessor left."""
        self._want_interrupt()

    def close(self) -> None:
        self.guest.__exit__(None, None, None)
        os.close(self.kick)
        os.close(self.log)
        if self.image >= 0:
            os.close(self.image)

    @property
    def done(self) -> bool:
        return len(self.lengths) == self.scenario.total - self.scenario.held

    def submit(self) -> None:
        """Fill the window, and kick if the device asks for it."""
        scenario = self.scenario
        heads = []
        while self.sent < scenario.total and len(self.waiting) < scenario.window:
            self.sent += 1
            head = self.free.pop(0)
            self.waiting[head] = self.sent
            heads.append(head)
        if heads and self._offer(heads):
            os.eventfd_write(self.kick, 1)
            self.kicks += 1

    def new_worker(self) -> None:
        """Count the kicks that nobody has taken: no worker is alive."""
        try:
            self.kicks = os.eventfd_read(self.kick)
        except BlockingIOError:
            self.kicks = 0
        else:
            os.eventfd_write(self.kick, self.kicks)

    def interrupted(self) -> bool:
        """Take the interrupt, if there is one: reap and send more."""
        if not self.guest.calls():
            return False
        if self.scenario.logged and self._take_page(self._used_page()):
            self.used_copy[:] = self._used()
        while True:
            for head, length in self._reap():
                self._completed(head, length)
            self._want_interrupt()
            if not self._has_more():
                break
        self.submit()
        return True

    def check_image(self) -> None:
        """Each write must be there."""
        for number in filter(writes, range(1, self.sent + 1) if self.image >= 0 else ()):
            found = os.pread(self.image, LENGTH, SECTOR * number)
            if found != answer(number):
                raise Wrong(f"request {number} left {found.hex()} in the image")

    def check_log(self) -> None:
        """Who copies a page after it was taken from the log has all that the device wrote there."""
        if not self.scenario.logged or self._take_page(self._used_page()):
            return
        if self.used_copy != self._used():
            raise Wrong("the used ring has changed since its page was last marked")

    def _take_page(self, addr: int) -> bool:
        """Take a page from the log, as the VMM does before it copies it: whether it was there. No
        worker marks anything meanwhile: they sleep, or are dead.
        """
        page = addr // PAGE
        (bits,) = os.pread(self.log, 1, page // 8)
        os.pwrite(self.log, bytes([bits & ~(1 << page % 8)]), page // 8)
        return bool(bits >> page % 8 & 1)

    def _parts(self, head: int) -> list[tuple[int, int, bool]]:
        """The buffers of the request, filled: (address, length, device may write)."""
        at = DATA + self.stride * head
        readable, room = self._contents(self.waiting[head])
        self.guest.write(at, readable + bytes([EMPTY]) * room)
        return [(at, len(readable), False), (at + len(readable), room, True)]

    def _contents(self, number: int) -> tuple[bytes, int]:
        """What request `number` gives to read, and the room for its answer."""
        if self.scenario.device != "blk":
            return number.to_bytes(LENGTH, "little"), LENGTH
        header = struct.pack("<IIQ", writes(number), number, number)
        return (header + answer(number), 1) if writes(number) else (header, LENGTH + 1)

    def _completed(self, head: int, length: int) -> None:
        number = self.waiting.pop(head, None)
        if number is None:
            raise Wrong(f"head {head} came back and was not outstanding")
        if self.scenario.logged and not self._take_page(DATA + self.stride * head):
            raise Wrong(f"request {number} was completed, and its page is not marked as written to")
        readable, room = self._contents(number)
        if length == room:
            found = self.guest.read(DATA + self.stride * head + len(readable), room)
            wanted = answer(number) if room >= LENGTH else b""
            if found != (wanted + b"\0")[:room]:
                raise Wrong(f"request {number} was answered with {found.hex()}")
        elif length or not self.scenario.at_most_once:
            raise Wrong(f"request {number} came back with {length} bytes")
        self.lengths[number] = length
        self.free.append(head)

    # The ring's layout.

    def _make(self) -> Guest:
        scenario = self.scenario
        guest = Guest(scenario.size, scenario.base)
        guest.taken = (scenario.base - scenario.lost) & 0xFFFF
        guest.set_used_idx(guest.taken)
        return guest

    def _names(self) -> list[int]:
        """What requests may be called; a head is one here."""
        step = 1 if self.scenario.indirect else 2
        return list(range(0, self.scenario.size - step + 1, step))

    def end(self) -> int:
        """The base at which the ring has to stop."""
        return (self.guest.offered - self.scenario.held) & 0xFFFF

    def end_if_kept(self) -> int | None:
        """The base at which it stops if a death has made it keep what the device gave back."""
        return None

    def record_bytes(self) -> int:
        """Of the in-flight record."""
        return record_bytes(self.scenario.size)

    def marks(self) -> Iterator[int]:
        """Where in the record each mark is."""
        return iter(range(16, 16 * self.scenario.size + 16, 16))

    def _offer(self, heads: list[int]) -> bool:
        """Make them available; whether the device wants to be kicked."""
        guest, old = self.guest, self.guest.offered
        for head in heads:
            if self.scenario.indirect:
                (at, length, _), (end, room, _) = self._parts(head)
                table = descriptor(at, length, NEXT, 1) + descriptor(end, room, WRITE)
                guest.write(TABLES + 32 * head, table)
                guest.set_desc(head, TABLES + 32 * head, len(table), INDIRECT)
            else:
                guest.chain(head, self._parts(head))
        guest.offer(*heads)
        new = guest.offered
        if self.scenario.event_idx:
            return (new - guest.avail_event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not guest.used_flags & NO_NOTIFY

    def _reap(self) -> list[tuple[int, int]]:
        """(head, length) of what was completed."""
        return self.guest.reap()

    def _has_more(self) -> bool:
        return self.guest.taken != self.guest.used_idx

    def _used_page(self) -> int:
        """Where in guest memory the device writes of the ring."""
        return self.guest.used

    def _used(self) -> bytes:
        return self.guest.read(self.guest.used, 6 + 8 * self.guest.size)

    def _want_interrupt(self) -> None:
        if not self.scenario.event_idx:
            return
        ahead = 3 * len(self.waiting) // 4 if self.scenario.lazy else 0
        self.guest.set_used_event(self.guest.taken + ahead)
