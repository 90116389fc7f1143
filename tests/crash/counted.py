"""A disk that counts how often each request is executed, wherever its workers end."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from vuproc.devices.blk import Blk, BlkOptions

if TYPE_CHECKING:
    from vuproc.shm.request import Request

TAGS = 1 << 21
"""Requests a queue that can be told apart; each takes a byte of a sparse file."""


class CountedOptions(BlkOptions, kw_only=True):
    executions: Annotated[str, Meta(description="A file of `TAGS` bytes for each queue.")] = ""


class CountedBlk(Blk):
    """virtio-blk. A request's tag stands in the header's reserved word; 0 is not counted."""

    options_type = CountedOptions
    options: CountedOptions

    def setup(self, queue: int) -> None:
        super().setup(queue)
        descriptor = os.open(self.options.executions, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._counts = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)

    def handle(self, request: Request) -> None:
        # Before it is done, so that a worker which dies over it has counted it. One process a
        # queue, so that nothing is lost between the load and the store.
        tag = int.from_bytes(request.readable_segments[0][4:8], "little")
        if tag:
            self._counts[request.queue * TAGS + tag] += 1
        super().handle(request)
