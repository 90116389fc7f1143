"""Where one queue's ring is, behind an IOMMU, and what its worker asks about addresses."""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from vuproc.errors import MemoryFault
from vuproc.shm.dirty import DirtyLog
from vuproc.shm.iotlb import Iotlb
from vuproc.shm.memory import GuestMemory
from vuproc.spec.iotlb import IOTLB_PAGE as PAGE
from vuproc.spec.iotlb import Access
from vuproc.spec.ring_layout import PACKED, SPLIT, RingLayout
from vuproc.vhost_user.effects import RingSetup
from vuproc.workers.record_place import place_in_record

log = logging.getLogger("vuproc.worker")

ASK_AGAIN_FIRST_S, ASK_AGAIN_MOST_S = 0.1, 5.0
"""Seconds before a question that nobody has answered is asked again; they double each time."""
COMPLAIN_S = 10.0
"""Seconds without an answer that are worth a line in the log."""
ROUNDS_MAX = 1024
"""Times that one chain may be looked at and still want a translation, each of them with something
new to ask: then it needs more than are kept, or somebody takes them away again and again.
"""
AREA_ACCESS = {
    SPLIT: (Access.READ, Access.READ, Access.WRITE),
    PACKED: (Access.READ | Access.WRITE, Access.READ, Access.WRITE),
}
"""What a device does with the descriptors, and with the areas of the driver and of its own."""

Miss = tuple[int, int]
"""The I/O virtual address of a page, and the `Access` that is wanted."""
OnMiss = Callable[[int, Sequence[Miss]], None]


class QueuePlace:
    """The addresses of queue `index`, as its driver has them; `on_miss(index, misses)` asks.

    `waits`: the ring is started, and where it lies is not known (yet, or any more).
    """

    def __init__(self, index: int, on_miss: OnMiss) -> None:
        self.iotlb: Iotlb | None = None
        """The worker's; None: there is no IOMMU."""
        self.waits = False
        self._index = index
        self._on_miss = on_miss
        self._layout = SPLIT
        self._setup: RingSetup | None = None
        self._kept: int | None = None
        self._memory = GuestMemory()
        self._table = GuestMemory()
        self._joined = False
        self._written: list[int] = []
        """Guest addresses of the pages of the ring that we write to."""
        self._asked: dict[Miss, None] = {}
        self._asked_at = self._again_at = 0.0
        self._pause = ASK_AGAIN_FIRST_S
        self._rounds = 0
        self._complained = False

    def begin(
        self, setup: RingSetup, layout: RingLayout, memory: GuestMemory, iotlb: Iotlb
    ) -> None:
        """A ring is started. Its record's descriptor is kept until `end`."""
        self.iotlb, self._setup, self._layout, self._memory = iotlb, setup, layout, memory
        self._kept, self.waits = None, True

    def end(self) -> None:
        """There is no ring any more."""
        setup, self._setup = self._setup, None
        if setup is not None and setup.inflight is not None:
            setup.inflight.fd.close()
        self.iotlb, self._memory, self.waits = None, GuestMemory(), False
        self._table, self._joined, self._written = GuestMemory(), False, []
        self.settled()

    # Where the ring is.

    def remember(self, memory: GuestMemory) -> None:
        """The memory table has changed."""
        if self.iotlb is not None:
            self._memory = memory

    def find(self) -> tuple[RingSetup, GuestMemory] | None:
        """The ring's set-up with user addresses, in which memory; None if not all of them are
        known. An area whose pages lie apart is mapped once more, in one piece. Raises MemoryFault
        if that cannot be.
        """
        if self.iotlb is None:
            return None
        found: list[int] = []
        memory, written, complete = self._memory, [], True
        for (address, length), access in zip(self._areas(), AREA_ACCESS[self._layout], strict=True):
            pages = self._pages(self.iotlb, address, length, access)
            if pages is None:
                complete = False
                continue
            if pages != list(range(pages[0], pages[-1] + PAGE, PAGE)):
                if mmap.PAGESIZE != PAGE:
                    raise MemoryFault(address, length, "in several pieces of memory")
                memory, start = memory.joined(pages)
            else:
                start = pages[0]
            found.append(start + address % PAGE)
            if access & Access.WRITE:
                written += pages
        if not complete:
            return None
        assert self._setup is not None
        self._joined, self._table = memory is not self._memory, memory
        self._written = [guest for page in written for guest in guest_pages(memory, page)]
        desc, avail, used = found
        return replace(self._setup, desc=desc, avail=avail, used=used), memory

    def _pages(self, iotlb: Iotlb, address: int, length: int, access: int) -> list[int] | None:
        """The user address of each page of an area; None if some are not known."""
        first = address - address % PAGE
        pages = [
            iotlb.place(self._memory, page, PAGE, access)
            for page in range(first, address + length, PAGE)
        ]
        return None if None in pages else [page for page in pages if page is not None]

    def moved(self, memory: GuestMemory) -> tuple[GuestMemory, bool]:
        """The table for a ring that goes on in a changed one, and whether it has to be found anew
        instead as soon as it is idle: what was joined for it may be gone.
        """
        if not self._joined:
            return memory, False
        self._table = memory.with_joined_of(self._table)
        return self._table, True

    def mark(self, log: DirtyLog) -> None:
        """Mark all pages of the ring that a device writes to."""
        for page in self._written:
            log.mark(page, PAGE)

    def lies_in(self, first: int, last: int) -> bool:
        """Whether the ring has a byte at one of these I/O virtual addresses."""
        return self.iotlb is not None and any(
            address <= last and first < address + length for address, length in self._areas()
        )

    def lost(self, base: int, kept: int) -> None:
        """The ring has stopped at `base` with so many requests in its record, and goes on there
        once it is known where it lies.
        """
        assert self._setup is not None
        self._setup, self._kept, self.waits = replace(self._setup, base=base), kept, True
        self._table = GuestMemory()

    def stopped_at(self) -> tuple[int, int]:
        """The base of a ring that waits, and how many requests its record has."""
        assert self._setup is not None and self._setup.inflight is not None
        if self._kept is not None:
            return self._layout.earlier(self._setup.base or 0, self._kept), self._kept
        if self._setup.base is not None:
            return self._setup.base, 0
        # Another worker has had it.
        return place_in_record(self._layout, self._setup.inflight) or (0, 0)

    def _areas(self) -> Sequence[tuple[int, int]]:
        """Address and length of each."""
        setup, layout = self._setup, self._layout
        if setup is None:
            return ()
        return (
            (setup.desc, layout.desc.length(setup.size)),
            (setup.avail, layout.avail.length(setup.size)),
            (setup.used, layout.used.length(setup.size)),
        )

    # What is asked.

    def ask(self) -> bool:
        """Ask for what was looked for in vain, unless that was done; False if there was no end to
        it.
        """
        if self.iotlb is None:
            return True
        new = [miss for miss in self.iotlb.take_misses() if miss not in self._asked]
        if not new:
            return True
        now = time.monotonic()
        if not self._asked:
            self._asked_at, self._pause = now, ASK_AGAIN_FIRST_S
        self._asked.update(dict.fromkeys(new))
        self._again_at = now + self._pause
        self._rounds += 1
        self._on_miss(self._index, new)
        return self._rounds <= ROUNDS_MAX

    def settled(self) -> None:
        """Nothing waits for an answer."""
        self._asked.clear()
        self._rounds, self._complained = 0, False

    def answered(self, first: int, last: int) -> bool:
        """Some translations have come; whether all have that were asked for."""
        for miss in [miss for miss in self._asked if first <= miss[0] <= last]:
            del self._asked[miss]
        return not self._asked

    def was_asked(self, miss: Miss) -> bool:
        """Whether somebody waits for it still."""
        return miss in self._asked

    def due(self) -> float | None:
        """Seconds until something is to be asked again; None: nothing is."""
        return max(0.0, self._again_at - time.monotonic()) if self._asked else None

    def ask_again(self) -> None:
        """Do so, if it is due."""
        if not self._asked or (now := time.monotonic()) < self._again_at:
            return
        self._pause = min(2 * self._pause, ASK_AGAIN_MOST_S)
        self._again_at = now + self._pause
        if not self._complained and now - self._asked_at >= COMPLAIN_S:
            self._complained = True
            log.warning(
                "queue %d: the front-end does not say what the I/O virtual address %#x is",
                self._index,
                next(iter(self._asked))[0],
            )
        self._on_miss(self._index, list(self._asked))


def guest_pages(memory: GuestMemory, user_addr: int) -> list[int]:
    """The guest address of a page by the front-end's user address, in a list; none for no page."""
    return [
        guest + user_addr - user
        for guest, size, user in memory.regions
        if user <= user_addr < user + size
    ]
