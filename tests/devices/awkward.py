"""Devices that do what a device should not, or what few do."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from collections import deque

from vuproc import Device, Request

RX, TX = 0, 1


def at(word: bytes) -> None:
    """What may happen inside a device's code."""
    if word == b"segv":
        ctypes.string_at(0)
    if word == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == b"block":
        time.sleep(1000)


class Deadly(Device):
    """An `async def handle` in which the worker may die, or stand still."""

    device_id = 42
    busy: asyncio.Task[None] | None = None

    async def handle(self, request: Request) -> None:
        word = request.read()
        await asyncio.sleep(0)
        at(word)
        if word == b"spin" and self.busy is None:
            self.busy = asyncio.get_running_loop().create_task(self.spin())
        request.write(b"ok")

    async def spin(self) -> None:
        while True:
            await asyncio.sleep(0)


class Raises(Device):
    """It pulls, and raises with requests left."""

    device_id = 42

    def pulls(self, queue: int) -> bool:
        return True

    def handle(self, request: Request) -> None:
        raise AssertionError("it is never called")

    def available(self, queue: int) -> None:
        while (request := self.take(queue)) is not None:
            word = request.read()
            request.write(b"ok")
            request.finish()
            if word == b"bad":
                raise ValueError("one bad request")


class TopsUp(Device):
    """It keeps two buffers in hand, which a timer sees to; what is sent takes half a second."""

    device_id = 42

    def num_queues(self) -> int:
        return 2

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(RX, TX)]

    def setup(self, queue: int) -> None:
        self.kept: deque[Request] = deque()
        if queue == RX:
            self.call_every(0.01, self.top_up)

    def pulls(self, queue: int) -> bool:
        return queue == RX

    def available(self, queue: int) -> None:
        self.top_up()

    def top_up(self) -> None:
        while len(self.kept) < 2 and (buffer := self.take(RX)) is not None:
            self.kept.append(buffer)

    def handle(self, request: Request) -> None:
        request.defer()
        request.write(b"late")
        self.call_later(0.5, request.finish)

    def ring_stopping(self, queue: int) -> None:
        while queue == RX and self.kept:
            self.kept.popleft().release()


class TakesElsewhere(TopsUp):
    """Another thread wants to take."""

    def setup(self, queue: int) -> None:
        self.kept = deque()

    def handle(self, request: Request) -> None:
        said: list[str] = []

        def work() -> None:
            try:
                self.take(RX)
            except RuntimeError as error:
                said.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        request.write(" ".join(said).encode())


class Releases(Device):
    """It gives back what it is told to, once, without a stop."""

    device_id = 42
    gave = False

    def handle(self, request: Request) -> None:
        if request.read() == b"later" and not self.gave:
            self.gave = True
            request.release()
            return
        request.write(b"ok")
