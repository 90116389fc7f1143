"""Sources of entropy (virtio 1.3, section 5.4) whose bytes can be told: words of a number and a
checksum of it. Each serves its requests in another of the ways that a device has.
"""

from __future__ import annotations

import asyncio
import ctypes
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from vuproc import Device, Fd, Request, shared

WORD = struct.Struct("<II")
DELAY_S = 0.005
"""Seconds that each request takes: long enough for a death to come in the middle of one."""


class Given(ctypes.Structure):
    """What outlives a worker."""

    _fields_ = (("words", ctypes.c_uint32),)


class Entropy(Device):
    """Fills each request with the words that follow; a number comes once, over all deaths."""

    device_id = 4
    queues = 1
    seed: ClassVar[bytes]

    def shared_files(self) -> dict[str, Fd]:
        return {"given": shared.struct_file(Given)}

    def setup(self, queue: int) -> None:
        self.given = shared.struct(Given, self.shared["given"])
        self.lock = threading.Lock()

    def fill(self, request: Request) -> None:
        with self.lock:
            first = self.given.words
            self.given.words += request.writable // WORD.size
            last = self.given.words
        request.write(b"".join(self.word(number) for number in range(first, last)))

    @classmethod
    def word(cls, number: int) -> bytes:
        return WORD.pack(number, zlib.crc32(cls.seed + number.to_bytes(4, "little")))

    @classmethod
    def numbers(cls, content: bytes) -> Iterator[int]:
        """The numbers of words that a guest has read; AssertionError for what was never given."""
        for at in range(0, len(content), WORD.size):
            (number, _) = WORD.unpack_from(content, at)
            assert content[at : at + WORD.size] == cls.word(number)
            yield number


class Awaited(Entropy):
    """By a task for each request."""

    seed = b"a task"

    async def handle(self, request: Request) -> None:
        await asyncio.sleep(DELAY_S)
        self.fill(request)


class Timed(Entropy):
    """By timers."""

    seed = b"a timer"

    def handle(self, request: Request) -> None:
        request.defer()
        self.call_later(DELAY_S, lambda: self.give(request))

    def give(self, request: Request) -> None:
        self.fill(request)
        request.finish()


class Threaded(Entropy):
    """By threads."""

    seed = b"a thread"

    def setup(self, queue: int) -> None:
        super().setup(queue)
        self.threads = ThreadPoolExecutor(2)
        self.ending = threading.Event()

    def handle(self, request: Request) -> None:
        request.defer()
        self.threads.submit(self.give, request)

    def give(self, request: Request) -> None:
        self.ending.wait(DELAY_S)
        self.fill(request)
        request.finish()

    def teardown(self) -> None:
        self.ending.set()
        self.threads.shutdown()


WAYS = (Awaited, Timed, Threaded)
