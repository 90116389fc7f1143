"""A guest under whose first queue bits flip: in its ring, its tables and buffers, its record."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conformance.checks import works
from vuproc.fd import Fd
from vuproc.shm.inflight import record_bytes
from vuproc.spec.blk import BlkType
from vuproc.spec.inflight import packed_record_bytes
from vuproc.testing.block import Block
from vuproc.testing.errors import Refused
from vuproc.testing.guest import DRIVER_READY
from vuproc.testing.inflight import InflightRegion
from vuproc.testing.memory import Ram, RamRegion
from vuproc.testing.serve import Served

SIZE = 16
MEMORY = 1 << 20
VICTIM, OTHER = 0, 1
THEIRS = 0x10_0000
SAFE = 0x2AA_AAA0_0000
"""Guest addresses of each queue's memory. They differ in more bits than ever flip in one address:
the first queue's requests cannot be bent so that they write over the other's ring.
"""
FLIPPED = 0x4000
"""So much of the first queue's memory is hit: ring, tables, headers and buffers lie there."""


class FlippedGuest:
    """Two queues, each in a region of its own, whose files have guard pages on both sides."""

    def __init__(self, served: Served, choose: random.Random, *, packed: bool) -> None:
        self.choose = choose
        self.theirs, self.safe = (
            RamRegion(address, MEMORY, mmap_offset=mmap.PAGESIZE) for address in (THEIRS, SAFE)
        )
        for region in (self.theirs, self.safe):
            os.ftruncate(region.fd.fileno(), MEMORY + 2 * mmap.PAGESIZE)
        self.inflight = InflightRegion(2, SIZE)
        self._record_end = packed_record_bytes(SIZE) if packed else record_bytes(SIZE)
        os.ftruncate(self.inflight.fd.fileno(), self.inflight.size + mmap.PAGESIZE)
        self.record = mmap.mmap(self.inflight.fd.fileno(), self.inflight.size)
        self.guest = served.guest(
            queue_size=SIZE, memory=Ram([self.safe, self.theirs]), packed=packed, start=False
        )
        self.guest.setup()
        self.guest.front_end.set_inflight(self.inflight)
        self.guest.start_queue(OTHER)
        with self._own_memory():
            self.guest.start_queue(VICTIM)
        self.guest.set_status(DRIVER_READY)

    def close(self) -> None:
        """Disconnect, and give everything back."""
        self.guest.close()
        self.record.close()
        self.inflight.close()

    def __enter__(self) -> FlippedGuest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def send(self) -> None:
        """Good requests, some in tables, of which the device is not told yet."""
        request = ([Block.header(BlkType.IN)], [512, 1])
        with self._own_memory():
            queue = self.guest.queues[VICTIM]
            queue.submit_many([request] * 3, kick=False)
            queue.submit_many([request] * 4, indirect=True, kick=False)

    def flip(self) -> None:
        """One bit of ring, memory or record, each as likely as the others."""
        ring = self.guest.queues[VICTIM].block
        places: list[tuple[memoryview | mmap.mmap, int]] = [
            (ring.view, ring.size),
            (self.theirs.buffer, FLIPPED),
            (self.record, self._record_end),
        ]
        memory, size = self.choose.choice(places)
        memory[self.choose.randrange(size)] ^= 1 << self.choose.randrange(8)

    def disturb(self, flips: int) -> None:
        """Flip bits while the device is at it, and look after the other queue meanwhile."""
        for count in range(flips):
            self.flip()
            if self.choose.random() < 0.3:
                self.guest.queues[VICTIM].kick()
            if count % 8 == 0:
                works(self.guest, OTHER)

    def set_up_anew(self) -> bool:
        """Stop the first queue, and start it with a new ring; whether its record was as it must be.

        One that contradicts itself is refused, and gives way to an empty one.
        """
        self.guest.stop_queue(VICTIM)
        try:
            with self._own_memory():
                self.guest.start_queue(VICTIM)
        except Refused:
            self._empty_record()
            self.guest.kick_queue(self.guest.queues[VICTIM])
            self.guest.enable_queue(VICTIM)
            return False
        return True

    def reset(self) -> None:
        """The driver resets the device, with an empty record."""
        self.guest.stop_queue(VICTIM)
        self._empty_record()
        self.guest.reset()

    def intact(self) -> bool:
        """No byte outside of what the device was shown was written."""
        page = mmap.PAGESIZE
        places = [
            *((region.fd, at) for region in (self.theirs, self.safe) for at in (0, page + MEMORY)),
            (self.inflight.fd, self.inflight.size),
        ]
        return not any(_read(fd, at).strip(b"\0") for fd, at in places)

    def _empty_record(self) -> None:
        self.record[: self._record_end] = bytes(self._record_end)

    @contextmanager
    def _own_memory(self) -> Iterator[None]:
        """What is allocated lies in the first queue's region."""
        regions = self.guest.ram.regions
        regions.reverse()
        try:
            yield
        finally:
            regions.reverse()


def _read(fd: Fd, at: int) -> bytes:
    return os.pread(fd.fileno(), mmap.PAGESIZE, at)
