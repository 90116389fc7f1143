"""Devices of which one worker serves several queues."""

from __future__ import annotations

import os

from vuproc import Device, Request
from vuproc.shm.native import NativeDevice


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


class OneForAll(Device):
    """One native object, which answers nothing, serves two rings; `handle` a third."""

    device_id = 42
    queues = 3

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(0, 1, 2)]

    def setup(self, queue: int) -> None:
        if queue == 0:
            self.one = NativeDevice()
            # The loop is to wake up for it, once for both of its rings.
            self.one.completion_fd = os.eventfd(0)

    def native(self, queue: int) -> NativeDevice | None:
        return self.one if queue < 2 else None

    def handle(self, request: Request) -> None:
        request.write(b"by hand")
