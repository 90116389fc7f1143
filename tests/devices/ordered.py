"""A device whose transmit queue needs what the driver posted on its receive queue before."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable

from vuproc import Device, Request

RX, TX = 0, 1


class Ordered(Device):
    """Both queues by `handle`. A transmit without a receive buffer is answered by "none"."""

    device_id = 42
    queues = 2

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(RX, TX)]

    def ring_started(self, queue: int) -> None:
        if queue == RX:
            self.buffers: deque[Request] = deque()

    def handle(self, request: Request) -> Awaitable[None] | None:
        if request.queue == RX:
            request.defer()
            self.buffers.append(request)
        elif self.buffers:
            buffer = self.buffers.popleft()
            buffer.write(request.read())
            buffer.finish()
            request.write(b"some")
        else:
            request.write(b"none")
        return None

    def ring_stopping(self, queue: int) -> None:
        while queue == RX and self.buffers:
            self.buffers.popleft().release()


class OrderedTasks(Ordered):
    """The same by tasks."""

    async def handle(self, request: Request) -> None:
        super().handle(request)
