"""Devices of which one worker serves several queues."""

from __future__ import annotations

import os

from vuproc import Device, Request
from vuproc.devices.blk import Blk
from vuproc.devices.blk_native import NativeBlk


class Together(Device):
    """Four queues, one worker; answers with its count of requests."""

    device_id = 42
    queues = 4

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(0, 1, 2, 3)]

    def setup(self, queue: int) -> None:
        self.served = 0

    def handle(self, request: Request) -> None:
        self.served += 1
        request.write(b"%d" % self.served)


class OneForAll(Blk):
    """A disk of which one native object serves all rings."""

    one: NativeBlk | None = None

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [tuple(range(self.num_queues()))]

    def native(self, queue: int) -> NativeBlk | None:
        if self.one is None:
            self.one = super().native(queue)
            assert self.one is not None
            if self.one.completion_fd < 0:
                # The loop is to wake up for it, once for all of its rings.
                self.one.completion_fd = os.eventfd(0)
        return self.one
