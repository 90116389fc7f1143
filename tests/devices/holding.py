"""Devices that keep what the driver posts: by `handle`, and by pulling."""

from __future__ import annotations

import os
import signal
from collections import deque
from typing import Annotated

from msgspec import Meta

from vuproc import Device, Options, Request

RX, TX = 0, 1


class Keeps(Device):
    """Echoes what comes on queue 1 into the buffers of queue 0, as a network card's loop-back does.

    It holds on to every buffer that it is given.
    """

    device_id = 42
    queues = 2

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(RX, TX)]

    def setup(self, queue: int) -> None:
        self.buffers: deque[Request] = deque()

    def handle(self, request: Request) -> None:
        if request.queue == RX:
            request.defer()
            self.buffers.append(request)
            return
        word = request.read()
        if word == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == b"count":
            request.write(str(len(self.buffers)).encode())
            return
        if word.startswith(b"skip"):
            # Out of their order: the oldest stay.
            self.buffers.rotate(-int(word[4:]))
        buffer = self.buffers.popleft()
        buffer.write(word)
        buffer.finish()

    def ring_stopping(self, queue: int) -> None:
        if queue == RX:
            for buffer in self.buffers:
                buffer.release()
            self.buffers.clear()


class PullsOptions(Options, kw_only=True):
    left: Annotated[int, Meta(description="What `available` leaves.")] = 0


class Pulls(Device):
    """The same without holding anything: it takes a buffer when it needs one."""

    device_id = 42
    queues = 2
    options_type = PullsOptions

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(RX, TX)]

    def setup(self, queue: int) -> None:
        self.backlog: deque[bytes] = deque()
        self.told = 0

    def pulls(self, queue: int) -> bool:
        return queue == RX

    def available(self, queue: int) -> None:
        self.told += 1
        self.deliver()

    def handle(self, request: Request) -> None:
        word = request.read()
        if word == b"told":
            request.write(str(self.told).encode())
            return
        if word == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        self.backlog.append(word)
        self.deliver()

    def deliver(self) -> None:
        while self.backlog:
            buffer = self.take(RX)
            if buffer is None:
                return
            buffer.write(self.backlog.popleft())
            buffer.finish()
