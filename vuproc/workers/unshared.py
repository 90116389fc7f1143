"""Notices guest memory that a front-end has passed and not shared: the driver writes elsewhere."""

from __future__ import annotations

import logging

from vuproc.errors import MemoryFault
from vuproc.remedies import SHARE_MEMORY
from vuproc.shm.memory import GuestMemory

log = logging.getLogger("vuproc.worker")

KICKS = 2
"""Kicks after which a ring that is all zero is worth a look: QEMU gives one of its own at a start,
since version 11 two, before it enables the ring; a driver none before it has put a request there.
"""
BYTES = 4096
"""Bytes of descriptors, and of the available ring, that are looked at then."""


class UnsharedMemory:
    """Looks once at the memory of a ring that was kicked, and says it if no driver has been there.

    `said` is for one front-end: its queues have one memory.
    """

    def __init__(self, queue: int) -> None:
        self.said = False
        self._queue = queue
        self._areas: tuple[tuple[int, int], ...] = ()
        self._memory = GuestMemory()
        self._kicks_left = 0
        self._enabled = self._early = False

    @property
    def done(self) -> bool:
        """Whether kicks tell nothing any more."""
        return self._kicks_left <= 0

    def begin(
        self, areas: tuple[tuple[int, int], ...], memory: GuestMemory, *, enabled: bool
    ) -> None:
        """A ring has started: user address and length in bytes of what its driver writes."""
        self._areas, self._memory, self._kicks_left = areas, memory, KICKS
        self._enabled, self._early = enabled, not enabled

    def enable(self, *, kick_waits: bool) -> None:
        """The ring is enabled; `kick_waits`: there are kicks from before, still to be read."""
        self._enabled, self._early = True, kick_waits

    def rebind(self, memory: GuestMemory) -> None:
        """The memory table has changed."""
        if self._kicks_left > 0:
            self._memory = memory

    def end(self) -> None:
        """There is no ring any more, or it has broken."""
        self._memory, self._kicks_left = GuestMemory(), 0

    def kicked(self, kicks: int, position: int) -> None:
        """So many kicks have come; `position` is the ring's, 0 if nothing was fetched.

        However many come before the ring is enabled, they say as little as one.
        """
        if self._kicks_left <= 0:
            return
        if self._early:
            self._kicks_left = KICKS - 1
            self._early = not self._enabled
            return
        self._kicks_left -= kicks
        if self._kicks_left > 0:
            return
        if not position and not self.said and self._untouched():
            self.said = True
            log.warning(
                "queue %d: the driver has kicked, but there is nothing in its ring: the guest "
                "memory that came from the front-end is probably not shared with it; %s",
                self._queue,
                SHARE_MEMORY,
            )
        self.end()

    def _untouched(self) -> bool:
        """Whether no driver has written to the ring, as far as its memory goes."""
        try:
            return not any(
                any(self._memory.user_view(address, min(length, BYTES)))
                for address, length in self._areas
            )
        except MemoryFault:
            return False
