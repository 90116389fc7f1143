"""The ring of one virtqueue behind an IOMMU: what it waits for, and what it must not use."""

from __future__ import annotations

from vuproc.spec.iotlb import Access
from vuproc.workers.queue_place import Miss
from vuproc.workers.queue_ring import QueueRing
from vuproc.workers.rings import AnyRing


class QueueIommu(QueueRing):
    """The ring of virtqueue `index`: as `QueueRing`, and what becomes known of its addresses."""

    _missed_at: tuple[int, int, int] | None = None
    """How far the ring had come when it last waited for translations."""

    def translated(self, first: int, last: int) -> None:
        """It is known by now what these I/O virtual addresses are."""
        answered = self._place.answered(first, last)
        self._find_place()
        if answered and self._ring is not None and not self._broken and self._ring.missing:
            self._ring.look_again()
            self.ready = True

    def untranslated(self, miss: Miss) -> None:
        """The front-end says that there is no such address, or not for this. A request that needs
        it breaks the ring; the ring itself may come to lie there later, so it is asked again.
        """
        if self._ring is not None and self._ring.missing and self._place.was_asked(miss):
            self.break_ring(f"I/O virtual address {miss[0]:#x} is not for us to {use_of(miss[1])}")

    def uses(self, first: int, last: int) -> bool:
        """Whether the device has a request that needs the memory at these I/O virtual addresses."""
        if self._ring is None or self._broken:
            return False
        if self._place.lies_in(first, last):
            return self._ring.in_flight > 0
        return self._ring.uses(first, last)

    def invalidated(self, first: int, last: int) -> None:
        """Nobody knows any more what these are, and the device has nothing of it: a ring that lies
        there has to be found again.
        """
        ring = self._ring
        if ring is None or self._broken or not self._place.lies_in(first, last):
            return
        self._lose_place(ring)

    def ask_again(self) -> None:
        """About addresses, if nobody has answered for a while."""
        self._place.ask_again()

    @property
    def due(self) -> float | None:
        """Seconds until that is to be done, or None."""
        return self._place.due()

    def _note_missing(self, ring: AnyRing) -> None:
        """It was run: ask for the translations that its next request waits for."""
        if self._place.iotlb is None:
            return
        at = ring.next_avail, ring.in_flight, ring.outstanding
        if ring.missing:
            self._missed_at = at
            if not self._place.ask():
                self.break_ring("the translations that a request needs do not stay")
        elif at != self._missed_at:
            # An order may have ended the turn before the request was looked at again.
            self._place.settled()


def use_of(access: int) -> str:
    """What an `Access` lets a device do, in words."""
    return " and ".join(bit.name.lower() for bit in Access(access) if bit.name)
