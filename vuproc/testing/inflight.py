"""The in-flight region as a front-end has it: records that it gives the back-end, and may move."""

from __future__ import annotations

import os

from vuproc.fd import Fd
from vuproc.spec.ring_layout import record_room
from vuproc.spec.virtio import Feature


class InflightRegion:
    """Records of `queues` rings of `queue_size` entries, of either layout, in a memfd of its own.

    content: what another had, whose guest was migrated; None: nothing is in flight.
    """

    def __init__(self, queues: int, queue_size: int, content: bytes | None = None) -> None:
        self.queues = queues
        self.queue_size = queue_size
        self.size = queues * record_room(Feature.RING_PACKED, queue_size)
        if content is not None and len(content) != self.size:
            raise ValueError(f"{len(content)} bytes for a region of {self.size}")
        self.fd = Fd(os.memfd_create("inflight", os.MFD_CLOEXEC))
        os.ftruncate(self.fd.fileno(), self.size)
        if content is not None:
            os.pwrite(self.fd.fileno(), content, 0)

    @property
    def content(self) -> bytes:
        """All bytes of it at this moment."""
        return os.pread(self.fd.fileno(), self.size, 0)

    def close(self) -> None:
        """Close the memfd."""
        self.fd.close()

    def __enter__(self) -> InflightRegion:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
