"""A driver whose requests can be verified one by one: random I/O on one queue of a disk.

Every sector that it writes carries its number and the sequence number of the write, and at most one
request at a time is in flight for a block: what a read must find is known exactly. It trusts its
interrupts and never looks at the ring after it has gone to sleep, so a forgotten one is a request
that is lost.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.crash.blocks import BLOCK_SIZE, SECTORS, ZEROES, Blocks
from tests.crash.counted import TAGS
from vuproc.spec.blk import BlkStatus, BlkType
from vuproc.spec.virtio import Feature
from vuproc.testing.errors import BackendFault
from vuproc.testing.guest import Guest
from vuproc.testing.memory import Allocation

LOOK_S = 0.5
LOST_LOOKS = 240
"""So many of them without a completion, and what is in flight counts as lost. Looks and not a time:
a machine that stands still for a while loses nothing. And many: where thirty others want a CPU, a
master needs half a minute to start.
"""
UNSET = 0xFF
"""Status byte of a request that nobody has executed."""
FLUSHES = 0.01
WRITES = 0.6

_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
"""Of a write of zeroes: first sector, sectors, flags."""
_UNMAP = 1
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
    refused: int = 0
    """Writes that failed while they might."""
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


class VerifiedQueue:
    """Drives queue `queue` of a started guest over `blocks`.

    zeroes: how much of what is written is zeroes, for which the device may give up the storage.
    may_fail: whether a write may, such as to a disk that is full.
    """

    def __init__(
        self,
        guest: Guest,
        queue: int,
        blocks: Blocks,
        *,
        depth: int,
        seed: int,
        zeroes: float = 0.0,
        may_fail: Callable[[], bool] = lambda: False,
    ) -> None:
        self.findings = Findings()
        self._blocks = blocks
        self._zeroes = zeroes
        self._may_fail = may_fail
        self._cut = False
        self._queue = guest.queues[queue]
        self._ring = self._queue.ring
        self._indirect = bool(guest.front_end.features & Feature.INDIRECT_DESC)
        self._busy: set[int] = set()
        self._random = random.Random(seed)
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

    def run(self, goes_on: Callable[[], bool], look: Callable[[], bool] = lambda: True) -> Findings:
        """Random requests while `goes_on`, then a look at every block, if it is to be."""
        if self._drive(self._at_random(goes_on)) and look():
            self._drive(self._all())
        return self.findings

    def cut(self) -> None:
        """Have `run`, in another thread, end with all that is in flight: nobody will complete it,
        since the connection is gone.
        """
        self._cut = True
        os.write(self._queue.call_bell.theirs.fileno(), (1).to_bytes(8, "little"))

    def _at_random(self, goes_on: Callable[[], bool]) -> Iterator[tuple[BlkType, int]]:
        while goes_on() and self.findings.requests < TAGS - self._blocks.count - 1:
            if self._random.random() < FLUSHES:
                yield BlkType.FLUSH, -1
                continue
            block = self._random.randrange(self._blocks.count)
            while block in self._busy:
                block = self._random.randrange(self._blocks.count)
            yield self._kind(), block

    def _kind(self) -> BlkType:
        if self._random.random() >= WRITES:
            return BlkType.IN
        # Nothing is drawn where there are no zeroes: a seed means what it always has.
        zeroes = self._zeroes and self._random.random() < self._zeroes
        return BlkType.WRITE_ZEROES if zeroes else BlkType.OUT

    def _all(self) -> Iterator[tuple[BlkType, int]]:
        for block in range(self._blocks.count):
            yield BlkType.IN, block

    def _drive(self, requests: Iterator[tuple[BlkType, int]]) -> bool:
        """Keep all slots busy until `requests` end; False if the queue is past all hope."""
        self._since = time.monotonic()
        more = True
        while more or self._in_flight:
            if self._cut:
                self._leave()
                return False
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
                if not self._sleep():
                    self._abandon()
                    return False
                self._ring.disarm()
        return True

    def _sleep(self) -> bool:
        """Until an interrupt; False if none comes."""
        return any(self._queue.call_bell.wait(LOOK_S) for _ in range(LOST_LOOKS))

    def _submit(self, kind: BlkType, block: int) -> None:
        slot = self._free.pop()
        sequence = self._blocks.next_sequence()
        self.findings.requests += 1
        slot.kind, slot.block, slot.sequence = kind, block, sequence
        moves = kind in (BlkType.IN, BlkType.OUT)
        sector = self._blocks.first_sector(block) if moves else 0
        slot.header.view[:] = _HEADER.pack(kind, sequence & 0xFFFF_FFFF, sector)
        slot.status.view[0] = UNSET
        segments = [(slot.header.guest_addr, _HEADER.size, False)]
        if kind != BlkType.FLUSH:
            self._busy.add(block)
            # A read that moves nothing must not find what is right.
            content = bytes(8)
            if kind == BlkType.OUT:
                content = self._blocks.content(block, sequence)
            elif kind == BlkType.WRITE_ZEROES:
                content = _RANGE.pack(self._blocks.first_sector(block), SECTORS, _UNMAP)
            slot.data.view[: len(content)] = content
            size = BLOCK_SIZE if moves else len(content)
            segments.append((slot.data.guest_addr, size, kind == BlkType.IN))
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
        number = _number(slot)
        if number is not None and status == BlkStatus.IOERR and self._may_fail():
            findings.refused += 1
            self._blocks.doubt(slot.block, number)
        elif status != BlkStatus.OK or written != wanted:
            findings.wrong.append(f"{name}: status {status}, {written} bytes written")
        elif number is not None:
            self._blocks.written(slot.block, number)
        elif slot.kind == BlkType.IN:
            missing = self._blocks.missing(slot.block, slot.data.view)
            if missing is not None:
                earlier, text = missing
                (findings.lost if earlier else findings.wrong).append(f"{name}: {text}")

    def _leave(self) -> None:
        """Nobody knows what becomes of that which is in flight."""
        for slot in self._in_flight.values():
            number = _number(slot)
            if number is not None:
                self._blocks.doubt(slot.block, number)

    def _abandon(self) -> None:
        names = ", ".join(f"{slot.kind.name} {slot.sequence}" for slot in self._in_flight.values())
        for slot in self._in_flight.values():
            self.findings.lost.append(f"{slot.kind.name} {slot.sequence}: never completed")
        if self._ring.pending:
            self.findings.lost.append(f"an interrupt, with all of {names} waiting for it")


def _number(slot: _Slot) -> int | None:
    """Of what a request writes; None if it is no write."""
    if slot.kind == BlkType.WRITE_ZEROES:
        return ZEROES
    return slot.sequence if slot.kind == BlkType.OUT else None
