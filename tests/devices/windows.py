"""Devices with shared memory, in which their driver has things shown. Each answers in words."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import ClassVar

from vuproc import Fd, Request
from vuproc.mapping import PAGE, MappingDevice, ShmemMapping
from vuproc.outcome import Outcome

PAGES = 8


class Windows(MappingDevice):
    """A request is a word and numbers: `map REGION PAGE PAGES LETTER`, in which LETTER fills what
    is shown, and the guest may write if it is a capital one; `unmap REGION PAGE PAGES`.
    """

    device_id = 42
    queues = 2
    shared_memory: ClassVar[Mapping[int, int]] = {0: PAGES * PAGE, 200: 2 * PAGE}

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(0, 1)]

    def setup(self, queue: int) -> None:
        self.known: Sequence[ShmemMapping] = ()

    def shmem_recovered(self, mappings: Sequence[ShmemMapping]) -> None:
        self.known = mappings

    def asked(self, words: list[str]) -> Outcome[None]:
        region, page, pages = map(int, words[1:4])
        if words[0] == "unmap":
            return self.shmem_unmap(region, page * PAGE, pages * PAGE)
        with Fd(os.memfd_create("shown", os.MFD_CLOEXEC)) as file:
            # Its first page is not for the guest.
            os.write(file.fileno(), b"-" * PAGE + words[4].encode() * (pages * PAGE))
            return self.shmem_map(
                region, page * PAGE, file, PAGE, pages * PAGE, writable=words[4].isupper()
            )

    def handle(self, request: Request) -> None:
        words = request.read().decode().split()
        match words[0]:
            case "known":
                request.write(
                    " ".join(f"{m.region}:{m.offset // PAGE}" for m in self.known).encode()
                )
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "many":
                for number in range(int(words[1])):
                    self.asked(["map", "0", str(number % PAGES), "1", "a"])
            case _:
                request.defer()
                self.answer_later(request, self.asked(words))

    def answer_later(self, request: Request, outcome: Outcome[None]) -> None:
        def done(error: Exception | None) -> None:
            request.finish(request.write(str(error or "done").encode()))

        outcome.then(done)


class AwaitedWindows(Windows):
    """The same with an `async def`."""

    async def handle(self, request: Request) -> None:  # type: ignore[override]
        outcome = self.asked(request.read().decode().split())
        try:
            await outcome
        except Exception as error:
            request.write(str(error).encode())
        else:
            request.write(b"done")
