"""A split virtqueue in the memory of a halted machine, played by the test as its driver."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vuproc.spec.virtio import (
    AVAIL_HEADER,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    EVENT_WORD,
    SPLIT_DESC,
    USED_ELEM,
    USED_HEADER,
)
from vuproc.testing.vms.errors import GuestFailed
from vuproc.testing.vms.qtest import PAGE, HaltedQemu

COMPLETION_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Segment:
    """One descriptor's memory; `writable` is the device's right to write it."""

    address: int
    size: int
    writable: bool = False


class PciQueue:
    """A split virtqueue in guest memory. Its areas are public: a hostile test writes there."""

    def __init__(
        self,
        machine: HaltedQemu,
        index: int,
        *,
        size: int,
        notify: int,
        word: int,
        event_idx: bool,
    ) -> None:
        self.machine = machine
        self.index = index
        self.size = size
        self.desc = machine.allocate(DESC_SIZE * size, PAGE)
        self.avail = machine.allocate(AVAIL_HEADER + 2 * size + EVENT_WORD, PAGE)
        self.used = machine.allocate(USED_HEADER + USED_ELEM.size * size + EVENT_WORD, PAGE)
        self._notify = notify
        self._word = word
        self._event_idx = event_idx
        self._free = list(range(size))
        self._avail_idx = 0
        self._used_idx = 0
        self._chains: dict[int, list[int]] = {}

    def put_descriptor(
        self, table: int, index: int, segment: Segment, flags: int = 0, after: int = 0
    ) -> None:
        """Writes one descriptor of a table; a writable segment's flag is added to `flags`."""
        flags |= DESC_F_WRITE if segment.writable else 0
        packed = SPLIT_DESC.pack(addr=segment.address, len=segment.size, flags=flags, next=after)
        self.machine.write(table + DESC_SIZE * index, packed)

    def add(self, segments: Sequence[Segment], *, indirect: bool = False) -> int:
        """Makes a chain and publishes it, without a notification; returns its head."""
        if indirect:
            table = self.machine.allocate(DESC_SIZE * len(segments))
            self._write_chain(table, range(len(segments)), segments)
            segments = [Segment(table, DESC_SIZE * len(segments))]
        if len(segments) > len(self._free):
            raise GuestFailed(f"queue {self.index} has no room for {len(segments)} descriptors")
        taken = [self._free.pop(0) for _ in segments]
        self._write_chain(self.desc, taken, segments, DESC_F_INDIRECT if indirect else 0)
        self._chains[taken[0]] = taken
        self.publish(taken[0])
        return taken[0]

    def _write_chain(
        self, table: int, indices: Sequence[int], segments: Sequence[Segment], flags: int = 0
    ) -> None:
        for place, (index, segment) in enumerate(zip(indices, segments, strict=True)):
            if place + 1 < len(indices):
                self.put_descriptor(table, index, segment, flags | DESC_F_NEXT, indices[place + 1])
            else:
                self.put_descriptor(table, index, segment, flags)

    def publish(self, head: int) -> None:
        """Puts any number into the available ring and moves its index."""
        slot = self.avail + AVAIL_HEADER + 2 * (self._avail_idx % self.size)
        self.machine.write(slot, struct.pack("<H", head))
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        self.machine.write(self.avail + 2, struct.pack("<H", self._avail_idx))

    def notify(self) -> None:
        """Tells the device to look at the queue (a kick)."""
        self.machine.write_register(self._notify, 2, self.index)

    def interrupted(self) -> bool:
        """Whether the queue's interrupt came since the last look."""
        if self.machine.read(self._word, 4) == bytes(4):
            return False
        self.machine.write(self._word, bytes(4))
        return True

    def completed(self) -> Iterator[tuple[int, int]]:
        """Takes new (head, written bytes) pairs from the used ring."""
        (index,) = struct.unpack("<H", self.machine.read(self.used + 2, 2))
        while self._used_idx != index:
            at = self.used + USED_HEADER + USED_ELEM.size * (self._used_idx % self.size)
            element = USED_ELEM.unpack(self.machine.read(at, USED_ELEM.size))
            self._used_idx = (self._used_idx + 1) & 0xFFFF
            self._free += self._chains.pop(element["id"], [])
            yield element["id"], element["len"]
        if self._event_idx:
            event = self.avail + AVAIL_HEADER + 2 * self.size
            self.machine.write(event, struct.pack("<H", self._used_idx))

    def wait_interrupt(self, timeout_s: float = COMPLETION_TIMEOUT_S) -> None:
        """Waits for the queue's interrupt; `GuestFailed` if it does not come."""
        poll_until(self.interrupted, timeout_s, f"no interrupt of queue {self.index}")

    def wait(self, count: int, timeout_s: float = COMPLETION_TIMEOUT_S) -> dict[int, int]:
        """Waits for `count` completions as a driver does which trusts interrupts: head -> bytes."""
        deadline = time.monotonic() + timeout_s
        done: dict[int, int] = {}
        while True:
            # Twice: what came before the next interrupt was asked for brings none.
            done |= dict(self.completed())
            done |= dict(self.completed())
            if len(done) >= count:
                return done
            self.wait_interrupt(deadline - time.monotonic())


def poll_until(condition: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
    """Asks until it holds; no busy loop, since each question is an exchange with QEMU."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise GuestFailed(f"{otherwise} in {timeout_s:g} s")
