"""The guest's side of a crash test: a driver that trusts interrupts and checks everything."""

from __future__ import annotations

import os

from tests.crash.scenario import Scenario
from tests.shm.guest import DATA, INDIRECT, NEXT, WRITE, Guest, descriptor

TABLES = DATA + 0x8000
LENGTH = 8
NO_NOTIFY = 1


def answer(number: int) -> bytes:
    """What the device is to write for request `number`."""
    return (number ^ 0x5A5A5A5A5A5A5A5A).to_bytes(LENGTH, "little")


class Wrong(Exception):
    """The ring or the device broke a promise, as the driver sees it."""


class Driver:
    """Numbers its requests 1, 2, ... in the order of the avail ring."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.guest = Guest(scenario.size, scenario.base)
        self.guest.taken = (scenario.base - scenario.lost) & 0xFFFF
        self.guest.set_used_idx(self.guest.taken)
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        step = 1 if scenario.indirect else 2
        self.free = list(range(0, scenario.size - step + 1, step))
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

    @property
    def done(self) -> bool:
        return len(self.lengths) == self.scenario.total

    def submit(self) -> None:
        """Fill the window, and kick if the device asks for it."""
        guest, scenario = self.guest, self.scenario
        old = guest.offered
        heads = []
        while self.sent < scenario.total and len(self.waiting) < scenario.window:
            self.sent += 1
            head = self.free.pop(0)
            self.waiting[head] = self.sent
            self._build(head, self.sent)
            heads.append(head)
        if not heads:
            return
        guest.offer(*heads)
        new = guest.offered
        if scenario.event_idx:
            wanted = (new - guest.avail_event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not guest.used_flags & NO_NOTIFY
        if wanted:
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
        while True:
            for head, length in self.guest.reap():
                self._completed(head, length)
            self._want_interrupt()
            if self.guest.taken == self.guest.used_idx:
                break
        self.submit()
        return True

    def _build(self, head: int, number: int) -> None:
        guest = self.guest
        at = DATA + 64 * head
        guest.write(at, number.to_bytes(LENGTH, "little") + bytes(LENGTH))
        if self.scenario.indirect:
            table = descriptor(at, LENGTH, NEXT, 1) + descriptor(at + LENGTH, LENGTH, WRITE)
            guest.write(TABLES + 32 * head, table)
            guest.set_desc(head, TABLES + 32 * head, len(table), INDIRECT)
        else:
            guest.chain(head, [(at, LENGTH, False), (at + LENGTH, LENGTH, True)])

    def _completed(self, head: int, length: int) -> None:
        number = self.waiting.pop(head, None)
        if number is None:
            raise Wrong(f"head {head} came back and was not outstanding")
        if length == LENGTH:
            found = self.guest.read(DATA + 64 * head + LENGTH, LENGTH)
            if found != answer(number):
                raise Wrong(f"request {number} was answered with {found.hex()}")
        elif length or self.scenario.resubmit == "run":
            raise Wrong(f"request {number} came back with {length} bytes")
        self.lengths[number] = length
        self.free.append(head)

    def _want_interrupt(self) -> None:
        if not self.scenario.event_idx:
            return
        ahead = 3 * len(self.waiting) // 4 if self.scenario.lazy else 0
        self.guest.set_used_event(self.guest.taken + ahead)
