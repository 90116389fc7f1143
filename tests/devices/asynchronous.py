"""Devices whose `handle` is an `async def`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from typing import ClassVar

from vuproc import Device, Request

WAKES, WAITS = 0, 1


class Answers(Device):
    """Does what the request says, and writes how it went."""

    device_id = 42
    queues = 2

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(WAKES, WAITS)]

    def setup(self, queue: int) -> None:
        self.at_once = self.most = 0
        self.events: dict[bytes, asyncio.Event] = {}
        self.forever: set[asyncio.Task[None]] = set()
        self.tasks: dict[bytes, asyncio.Task[None]] = {}
        self.kept: deque[Request] = deque()

    async def handle(self, request: Request) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            word, _, rest = request.read().partition(b" ")
            if word == b"return":
                return 5  # type: ignore[return-value]
            await self.act(request, word, rest)
        finally:
            self.at_once -= 1

    async def act(self, request: Request, word: bytes, rest: bytes) -> None:
        match word:
            case b"sleep":
                await asyncio.sleep(float(rest))
            case b"wait":
                task = asyncio.current_task()
                assert task is not None
                self.tasks[rest] = task
                await self.events.setdefault(rest, asyncio.Event()).wait()
            case b"wake":
                self.events.setdefault(rest, asyncio.Event()).set()
            case b"cancel":
                self.tasks[rest].cancel()
            case b"raise":
                await asyncio.sleep(0)
                raise RuntimeError("on demand")
            case b"exit":
                raise SystemExit(3)
            case b"keep":
                # Finished by a task of the device's own, which no request waits for.
                self.kept.append(request)
                request.defer()
                self.asyncio_loop.call_later(float(rest), self.give)
                return
            case b"later":
                # The worker's own timer, from within a task.
                event = asyncio.Event()
                self.call_later(float(rest), event.set)
                await event.wait()
            case b"stray":
                self.asyncio_loop.call_soon(self.stray)
            case b"forever":
                task = asyncio.current_task()
                assert task is not None
                self.forever.add(task)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    request.release()
                return
            case b"die":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"most":
                rest = b"%d" % self.most
        request.write(b"done " + rest)

    def ring_stopping(self, queue: int) -> None:
        for task in self.forever:
            task.cancel()
        self.forever.clear()

    def stray(self) -> None:
        raise LookupError("of nobody")

    def give(self) -> None:
        request = self.kept.popleft()
        request.write(b"given")
        request.finish()

    def fail(self, request: Request, error: BaseException) -> None:
        request.write(type(error).__name__.encode())
        request.finish()


class Plain(Device):
    """Says what it gets when it asks for the loop."""

    device_id = 42
    seen: ClassVar[str] = ""

    def handle(self, request: Request) -> None:
        try:
            loop = self.asyncio_loop
        except RuntimeError as error:
            request.write(str(error).encode())
        else:
            request.write(repr(loop).encode())


class Sends(Device):
    """Queue 0 is pulled from by a task of the device's own, `setup` begins it."""

    device_id = 42
    queues = 2

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(0, 1)]

    def setup(self, queue: int) -> None:
        if queue == 0:
            self.words: asyncio.Queue[bytes] = asyncio.Queue()
            self.there = asyncio.Event()
            self.sender = self.asyncio_loop.create_task(self.send())

    def pulls(self, queue: int) -> bool:
        return queue == 0

    def available(self, queue: int) -> None:
        self.there.set()

    async def send(self) -> None:
        while True:
            word = await self.words.get()
            while (buffer := self.take(0)) is None:
                self.there.clear()
                await self.there.wait()
            buffer.write(word)
            buffer.finish()

    async def handle(self, request: Request) -> None:
        self.words.put_nowait(request.read())
