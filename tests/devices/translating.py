"""A device that answers with what it was given, and a driver whose buffers lie page by page."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.devices.scattering import drain
from vuproc import Device, Request
from vuproc.spec.iotlb import IOTLB_PAGE, Access
from vuproc.testing.guest import Guest
from vuproc.testing.iommu import Iommu
from vuproc.testing.memory import Ram, RamRegion
from vuproc.testing.queue import DriverQueue

QUEUES = 2
PAGES = 512
RINGS = 1 << 20
"""Guest address of the memory that has the rings."""
ARENA = 64 << 20
"""And of that which has the buffers."""
SEGMENT_PAGES = 5
"""Most pages of a segment."""
FLIP = bytes(255 - byte for byte in range(256))


class Flips(Device):
    """Writes each byte that it reads, all bits of it the other way round.

    Each third request is kept until the one after it is done, or until the ring is to stop.
    """

    device_id = 42
    queues = QUEUES
    kept: Request | None = None
    count = 0

    def handle(self, request: Request) -> None:
        self.count += 1
        if self.count % 3 == 0 and self.kept is None and request.readable_total:
            request.defer()
            self.kept = request
            return
        self.flip(request)
        self.let_go()

    def flip(self, request: Request) -> None:
        request.write(request.read().translate(FLIP))

    def let_go(self) -> None:
        kept, self.kept = self.kept, None
        if kept is not None:
            self.flip(kept)
            kept.finish()

    def ring_stopping(self, queue: int) -> None:
        self.let_go()

    def ring_stopped(self, queue: int) -> None:
        self.kept = None


@dataclass(slots=True)
class Buffer:
    """Bytes at an I/O virtual address; `pages` are those of the arena that they lie in."""

    iova: int
    size: int
    pages: list[int]
    within: int
    expected: bytes = b""


@dataclass(slots=True)
class Arena:
    """Pages of a guest, in any order behind any addresses."""

    chance: random.Random
    region: RamRegion = field(default_factory=lambda: RamRegion(ARENA, PAGES * IOTLB_PAGE))
    rings: RamRegion = field(default_factory=lambda: RamRegion(RINGS, 2 << 20))
    offered: list[Buffer] = field(default_factory=list)
    free: list[int] = field(default_factory=lambda: list(range(PAGES)))
    spots: list[int] = field(default_factory=list)
    """First pages of I/O virtual ranges that were in use, and may be so again."""

    @property
    def ram(self) -> Ram:
        return Ram([self.rings, self.region])

    def buffer(self, iommu: Iommu, size: int, access: Access) -> Buffer:
        """Somewhere: perhaps where another was before."""
        within = self.chance.randrange(IOTLB_PAGE)
        count = -(-(within + size) // IOTLB_PAGE)
        self.chance.shuffle(self.free)
        pages = [self.free.pop() for _ in range(count)]
        if self.spots and self.chance.random() < 0.5:
            first = self.spots.pop(self.chance.randrange(len(self.spots)))
        else:
            first = self.chance.randrange(1 << 34, 1 << 46) // (1 << 20) * (1 << 20)
        for i, page in enumerate(pages):
            user = self.region.user_addr + page * IOTLB_PAGE
            iommu.map_at(first + i * IOTLB_PAGE, user, int(access))
        return Buffer(first + within, size, pages, within)

    def content(self, buffer: Buffer) -> bytes:
        """What a buffer holds."""
        whole = b"".join(self.region.buffer[p * IOTLB_PAGE :][:IOTLB_PAGE] for p in buffer.pages)
        return whole[buffer.within : buffer.within + buffer.size]

    def fill(self, buffer: Buffer, data: bytes) -> None:
        """Put bytes there, as the driver does."""
        at = buffer.within
        for page in buffer.pages:
            part = data[: IOTLB_PAGE - at]
            start = page * IOTLB_PAGE + at
            self.region.buffer[start : start + len(part)] = part
            data, at = data[len(part) :], 0

    def submit(self, guest: Guest, queue: DriverQueue) -> None:
        """One request of up to three segments each way."""
        assert guest.iommu is not None
        sizes = [self.chance.randrange(1, (SEGMENT_PAGES - 1) * IOTLB_PAGE) for _ in range(2)]
        out = [self.buffer(guest.iommu, size, Access.READ) for size in sizes]
        in_ = [self.buffer(guest.iommu, size, Access.WRITE) for size in reversed(sizes)]
        data = b""
        for buffer in out:
            self.fill(buffer, part := self.chance.randbytes(buffer.size))
            data += part
        flipped = data.translate(FLIP)
        for buffer in in_:
            self.fill(buffer, bytes(buffer.size))
            buffer.expected, flipped = flipped[: buffer.size], flipped[buffer.size :]
        segments = [(buffer.iova, buffer.size, False) for buffer in out]
        queue.ring.add(segments + [(buffer.iova, buffer.size, True) for buffer in in_])
        if queue.ring.publish() and queue.kick_bell is not None:
            queue.kick_bell.ring()
        self.offered += out + in_

    def finish(self, guest: Guest, count: int) -> None:
        """Take back `count` requests of each queue, and see that every byte is right."""
        assert guest.iommu is not None
        for queue in guest.queues.values():
            # The last may be kept until there is another, which has nothing to be read.
            queue.ring.add([(0, 0, False)])
            if queue.ring.publish() and queue.kick_bell is not None:
                queue.kick_bell.ring()
            drain(queue, count + 1)
        for buffer in self.offered:
            if buffer.expected:
                assert self.content(buffer) == buffer.expected
            first = buffer.iova - buffer.within
            if self.chance.random() < 0.8:
                guest.iommu.unmap(first, SEGMENT_PAGES * IOTLB_PAGE)
                self.spots.append(first)
            # What is not unmapped stays known, to a cache that nobody asks for it again.
            self.free += buffer.pages
        self.offered.clear()
