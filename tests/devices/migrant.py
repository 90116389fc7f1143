"""A guest that goes from one vuproc to another with what is in flight, as a VMM moves it."""

from __future__ import annotations

from typing import Self

from vuproc.testing import InflightRegion, Served
from vuproc.testing.guest import DRIVER_READY


class Migrant:
    """A guest with a record of its own, and `queues` rings of `size` entries that are started."""

    def __init__(
        self, at: Served, queues: int, size: int, *, packed: bool, memory: int = 16 << 20
    ) -> None:
        self.region = InflightRegion(queues, size)
        self.guest = at.guest(start=False, queue_size=size, packed=packed, memory=memory)
        self.guest.setup()
        self.guest.front_end.set_inflight(self.region)
        for index in range(queues):
            self.guest.start_queue(index)
        self.guest.set_status(DRIVER_READY)

    def move(self, to: Served) -> None:
        """Stop here, go on there, with the same memory and rings, and with a copy of the record."""
        guest = self.guest
        bases = {index: guest.stop_queue(index, drain=False) for index in guest.queues}
        left, guest.front_end = guest.front_end, to.connect()
        left.close()
        guest.setup()
        old, self.region = self.region, self._copied()
        old.close()
        guest.front_end.set_inflight(self.region)
        for index, queue in guest.queues.items():
            queue.base = bases[index]
            guest.configure_queue(queue)
            guest.kick_queue(queue)
            guest.enable_queue(index)
        guest.set_status(DRIVER_READY)

    def _copied(self) -> InflightRegion:
        return InflightRegion(self.region.queues, self.region.queue_size, self.region.content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.guest.close()
        self.region.close()
