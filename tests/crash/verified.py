"""A driver whose requests can be verified one by one: random I/O on one queue of a disk.

Every sector that it writes carries its number and the sequence number of the write, and at most one
request at a time is in flight for a block: what a read must find is known exactly. It trusts its
interrupts and never looks at the ring after it has gone to sleep, so a forgotten one is a request
that is lost.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.crash.counted import TAGS
from vuproc.spec.blk import SECTOR_SIZE, BlkStatus, BlkType
from vuproc.spec.virtio import Feature
from vuproc.testing.errors import BackendFault
from vuproc.testing.guest import Guest
from vuproc.testing.memory import Allocation

BLOCK_SIZE = 4096
SECTORS = BLOCK_SIZE // SECTOR_SIZE
LOST_S = 20.0
"""Seconds without a completion after which what is in flight counts as lost."""
UNSET = 0xFF
"""Status byte of a request that nobody has executed."""
FLUSHES = 0.01
WRITES = 0.6

_HEADER = struct.Struct("<IIQ")
_STAMP = struct.Struct("<QQQQ")
_MAGIC = 0x5EC0_17DE
_TABLE = struct.Struct("<16s16s16s")


@dataclass
class Findings:
    """What went wrong on one queue, in words; empty lists are what is hoped for."""

    requests: int = 0
    """Submitted."""
    lost: list[str] = field(default_factory=list)
    """Requests which were never completed, and completed writes which are not there."""
    doubled: list[str] = field(default_factory=list)
    """Completions of nothing that was in flight, or of what was not executed yet."""
    wrong: list[str] = field(default_factory=list)
    """Errors, wrong used lengths, and data that was never written there."""
    stall_s: float = 0.0
    """The longest time without a completion while something was in flight."""


@dataclass(eq=False)
class _Slot:
    """A request in flight, or room for one."""

    header: Allocation
    data: Allocation
    status: Allocation
    table: Allocation
    kind: BlkType = BlkType.IN
    block: int = 0
    sequence: int = 0
    tag: int = 0


class VerifiedQueue:
    """Drives queue `queue` of a started guest over the blocks [start, start + blocks)."""

    def __init__(
        self, guest: Guest, queue: int, *, start: int, blocks: int, depth: int, seed: int
    ) -> None:
        self.findings = Findings()
        self._queue = guest.queues[queue]
        self._ring = self._queue.ring
        self._indirect = bool(guest.front_end.features & Feature.INDIRECT_DESC)
        self._start = start
        self._written: list[int] = [0] * blocks
        """By block: the sequence number of the last write that was completed."""
        self._busy: set[int] = set()
        self._random = random.Random(seed)
        self._sequence = 0
        self._in_flight: dict[int, _Slot] = {}
        self._since = 0.0
        allocate = guest.ram.allocate
        self._free = [
            _Slot(
                allocate(_HEADER.size),
                allocate(BLOCK_SIZE, BLOCK_SIZE),
                allocate(1),
                allocate(_TABLE.size),
            )
            for _ in range(depth)
        ]

    def run(self, goes_on: Callable[[], bool]) -> Findings:
        """Random requests while `goes_on`, then a look at every block."""
        if self._drive(self._at_random(goes_on)):
            self._drive(self._all())
        return self.findings

    def _at_random(self, goes_on: Callable[[], bool]) -> Iterator[tuple[BlkType, int]]:
        while goes_on() and self.findings.requests < TAGS - len(self._written) - 1:
            if self._random.random() < FLUSHES:
                yield BlkType.FLUSH, -1
                continue
            block = self._random.randrange(len(self._written))
            while block in self._busy:
                block = self._random.randrange(len(self._written))
            yield BlkType.OUT if self._random.random() < WRITES else BlkType.IN, block

    def _all(self) -> Iterator[tuple[BlkType, int]]:
        for block in range(len(self._written)):
            yield BlkType.IN, block

    def _drive(self, requests: Iterator[tuple[BlkType, int]]) -> bool:
        """Keep all slots busy until `requests` end; False if the queue is past all hope."""
        self._since = time.monotonic()
        more = True
        while more or self._in_flight:
            while more and self._free:
                request = next(requests, None)
                more = request is not None
                if request is not None:
                    self._submit(*request)
            if self._ring.publish():
                assert self._queue.kick_bell is not None
                self._queue.kick_bell.ring()
            try:
                done = self._ring.reap()
            except BackendFault as fault:
                self.findings.doubled.append(str(fault))
                return False
            for head, written in done:
                self._completed(self._in_flight.pop(head), written)
            if done:
                now = time.monotonic()
                self.findings.stall_s = max(self.findings.stall_s, now - self._since)
                self._since = now
            elif self._in_flight and not self._ring.arm():
                if not self._queue.call_bell.wait(LOST_S):
                    self._abandon()
                    return False
                self._ring.disarm()
        return True

    def _submit(self, kind: BlkType, block: int) -> None:
        slot = self._free.pop()
        self._sequence += 1
        self.findings.requests += 1
        slot.kind, slot.block, slot.sequence = kind, block, self._sequence
        sector = 0 if kind == BlkType.FLUSH else (self._start + block) * SECTORS
        slot.header.view[:] = _HEADER.pack(kind, self._sequence, sector)
        slot.status.view[0] = UNSET
        segments = [(slot.header.guest_addr, _HEADER.size, False)]
        if kind != BlkType.FLUSH:
            self._busy.add(block)
            # A read that moves nothing must not find what is right.
            content = self._content(block, self._sequence) if kind == BlkType.OUT else bytes(8)
            slot.data.view[: len(content)] = content
            segments.append((slot.data.guest_addr, BLOCK_SIZE, kind == BlkType.IN))
        segments.append((slot.status.guest_addr, 1, True))
        indirect = self._indirect and self._random.random() < 0.5
        table = (slot.table.guest_addr, slot.table.view) if indirect else None
        self._in_flight[self._ring.add(segments, table)] = slot

    def _completed(self, slot: _Slot, written: int) -> None:
        name = f"{slot.kind.name} {slot.sequence} of block {slot.block}"
        findings = self.findings
        self._free.append(slot)
        self._busy.discard(slot.block)
        status = slot.status.view[0]
        if status == UNSET:
            findings.doubled.append(f"{name}: completed, but not executed")
            return
        wanted = BLOCK_SIZE + 1 if slot.kind == BlkType.IN else 1
        if status != BlkStatus.OK or written != wanted:
            findings.wrong.append(f"{name}: status {status}, {written} bytes written")
        elif slot.kind == BlkType.OUT:
            self._written[slot.block] = slot.sequence
        elif slot.kind == BlkType.IN:
            self._compare(name, slot)

    def _compare(self, name: str, slot: _Slot) -> None:
        sequence = self._written[slot.block]
        if slot.data.view == self._content(slot.block, sequence):
            return
        for place in range(0, BLOCK_SIZE, _STAMP.size):
            found = bytes(slot.data.view[place : place + _STAMP.size])
            if found != self._stamp(slot.block, place // SECTOR_SIZE, sequence):
                break
        old = found == bytes(_STAMP.size) or (
            _STAMP.unpack(found)[2] < sequence
            and found == self._stamp(slot.block, place // SECTOR_SIZE, _STAMP.unpack(found)[2])
        )
        where = self.findings.lost if old else self.findings.wrong
        where.append(f"{name}: write {sequence} is not there, but at {place} {found.hex()}")

    def _content(self, block: int, sequence: int) -> bytes:
        if sequence == 0:
            return bytes(BLOCK_SIZE)
        count = SECTOR_SIZE // _STAMP.size
        return b"".join(self._stamp(block, sector, sequence) * count for sector in range(SECTORS))

    def _stamp(self, block: int, sector: int, sequence: int) -> bytes:
        number = (self._start + block) * SECTORS + sector
        return _STAMP.pack(_MAGIC, number, sequence, (number * 31 + sequence) ^ _MAGIC)

    def _abandon(self) -> None:
        names = ", ".join(f"{slot.kind.name} {slot.sequence}" for slot in self._in_flight.values())
        for slot in self._in_flight.values():
            self.findings.lost.append(f"{slot.kind.name} {slot.sequence}: never completed")
        if self._ring.pending:
            self.findings.lost.append(f"an interrupt, with all of {names} waiting for it")
