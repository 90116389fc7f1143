"""A device that writes all over its driver's buffers, and a driver that sees what changed."""

from __future__ import annotations

import random
from collections.abc import Iterable

from vuproc import Device, Request
from vuproc.testing.dirty import PAGE, DirtyBitmap
from vuproc.testing.guest import Guest
from vuproc.testing.memory import Ram, RamRegion
from vuproc.testing.queue import DriverQueue

QUEUES = 3
ARENA = 4 << 20
FIRST = 1 << 20
"""Guest address of the memory that has the rings and what the driver writes."""
SECOND = 32 << 20
"""Of the memory that only the device writes to."""
END = 64 << 20
"""Where the memory ends that the log is for; a region above it comes later."""
BOUND_S = 60.0


class Scatters(Device):
    """Fills as many bytes of the buffers as the request's first two bytes say.

    Each third request is kept until the one after it is done, but none of three bytes.
    """

    device_id = 42
    queues = QUEUES
    kept: Request | None = None
    count = 0

    def handle(self, request: Request) -> None:
        self.count += 1
        if self.count % 3 == 0 and request.readable_total == 2 and self.kept is None:
            request.defer()
            self.kept = request
            return
        self.fill(request)
        self.let_go()

    def fill(self, request: Request) -> None:
        wanted = int.from_bytes(request.read(2), "little")
        request.write(b"\xff" * min(wanted, request.writable_total))

    def let_go(self) -> None:
        kept, self.kept = self.kept, None
        if kept is not None:
            self.fill(kept)
            kept.finish()

    def ring_stopping(self, queue: int) -> None:
        self.let_go()

    def ring_stopped(self, queue: int) -> None:
        self.kept = None


class Arena:
    """Memory of a guest that nobody but the device writes to, and requests with buffers in it."""

    def __init__(self, chance: random.Random) -> None:
        self.region = RamRegion(SECOND, ARENA)
        self.ram = Ram([RamRegion(FIRST, ARENA), self.region])
        self._chance = chance

    def buffers(self, count: int) -> list[tuple[int, int]]:
        """Addresses and lengths of some buffers, anywhere."""
        sizes = [self._chance.choice((1, 100, PAGE, 3 * PAGE + 5)) for _ in range(count)]
        return [(SECOND + self._chance.randrange(ARENA - size), size) for size in sizes]

    def submit(self, queue: DriverQueue, out: bytes, buffers: Iterable[tuple[int, int]]) -> None:
        """Offer one request, and kick if asked for. `drain` takes it back."""
        head = self.ram.allocate(len(out))
        head.view[:] = out
        segments = [(head.guest_addr, len(out), False)]
        queue.ring.add(segments + [(addr, size, True) for addr, size in buffers])
        if queue.ring.publish() and queue.kick_bell is not None:
            queue.kick_bell.ring()
        # The head is not given back: what the device reads is to stay as it is.

    def changed(self) -> set[int]:
        """The pages that the device has written to, since the last call."""
        content = bytes(self.region.buffer)
        self.region.buffer[:] = bytes(ARENA)
        first = SECOND // PAGE
        pages = range(ARENA // PAGE)
        return {first + n for n in pages if any(content[n * PAGE : (n + 1) * PAGE])}


def drain(queue: DriverQueue, count: int) -> None:
    """Take back so many requests."""
    while count:
        found = len(queue.ring.reap())
        count -= found
        assert count >= 0, "more came back than was offered"
        if found or not count or queue.ring.arm():
            continue
        assert queue.call_bell.wait(BOUND_S), f"queue {queue.index}: {count} did not come back"
        queue.ring.disarm()


def pages_of(spans: Iterable[tuple[int, int]]) -> set[int]:
    """The pages in which some bytes lie."""
    return {
        page for addr, size in spans for page in range(addr // PAGE, (addr + size - 1) // PAGE + 1)
    }


def ring_pages(guest: Guest, *queues: int) -> set[int]:
    """Those in which the rings of these queues lie, of either layout."""
    blocks = [guest.queues[index].block for index in queues]
    return pages_of((block.guest_addr, block.size) for block in blocks)


def used_pages(guest: Guest) -> set[int]:
    """Those of all used rings, or of the device's event areas."""
    return pages_of((queue.used_guest_addr, 4) for queue in guest.queues.values())


def in_arena(log: DirtyBitmap) -> set[int]:
    """The marked pages to which nobody writes but the device."""
    return {page for page in log.pages() if page >= SECOND // PAGE}
