"""Devices whose requests a worker dies over, and which say what is to become of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import ClassVar

from vuproc import Device, Request
from vuproc.device import Resubmit

RUN, DROP, FAIL = 0, 1, 2


class PerQueue(Device):
    """Holds each request; one that is "die" kills the worker with all that it has begun."""

    device_id = 42
    queues = 3
    resubmit: ClassVar[Resubmit | Mapping[int, Resubmit]] = {DROP: "drop", FAIL: "fail"}

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(RUN, DROP, FAIL)]

    def handle(self, request: Request) -> None:
        word = request.read()
        if word == b"resubmit":
            request.write(request.resubmit.encode())
        elif word == b"recovered":
            request.write(str(self.recovered).encode())
        elif word == b"die":
            if self.recovered:
                request.write(b"run again")
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        elif self.recovered:
            request.write(b"run again")
        else:
            request.defer()

    def fail(self, request: Request, error: BaseException) -> None:
        # Whole, as `handle` would have it.
        request.write(f"failed: {type(error).__name__} of {request.readable} bytes".encode())
        request.finish()


class PerRequest(PerQueue):
    """The request says it itself; its queue says the opposite."""

    resubmit = "fail"

    def handle(self, request: Request) -> None:
        word, _, rest = request.read().partition(b" ")
        match word:
            case b"choose":
                # Before its side effect, so to speak.
                request.resubmit = rest.decode()  # type: ignore[assignment]
                if request.resubmit != rest.decode():
                    raise ValueError(request.resubmit)
                request.defer() if not self.recovered else request.write(b"run again")
            case b"wrong":
                try:
                    request.resubmit = "dorp"  # type: ignore[assignment]
                except ValueError as error:
                    request.write(str(error).encode())
            case b"twice":
                # A frame is sent now, and after that only its answer is missing.
                request.resubmit = "run"
                request.resubmit = "drop"
                request.defer()
            case b"recovered":
                request.write(str(self.recovered).encode())
            case _:
                request.defer()


class Recovers(Device):
    """Two workers, which say whether others were there before them."""

    device_id = 42
    queues = 2

    def setup(self, queue: int) -> None:
        self.seen = self.recovered

    def handle(self, request: Request) -> None:
        request.write(b"%d%d" % (self.seen, self.recovered))
