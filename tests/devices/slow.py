"""A device that holds each request for a while, and writes down which it has run."""

from __future__ import annotations

import os
from typing import Annotated

from msgspec import Meta

from vuproc import Device, FilePath, Options, Request


class SlowOptions(Options, kw_only=True):
    ledger: Annotated[FilePath, Meta(description="A line for each request that was run.")]
    seconds: Annotated[float, Meta(description="How long each takes.")] = 0.0


class Slow(Device):
    """Runs a request some time after it has come, and every second one at once."""

    device_id = 42
    options_type = SlowOptions
    options: SlowOptions
    leaves_in_flight = True

    def setup(self, queue: int) -> None:
        self.file = os.open(self.options.ledger, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def handle(self, request: Request) -> None:
        number = request.read()
        if self.options.seconds and int(number) % 2:
            request.defer()
            self.call_later(self.options.seconds, lambda: self.run(request, number))
        else:
            self.run(request, number)

    def run(self, request: Request, number: bytes) -> None:
        if request.finished:
            return  # the ring has gone without it
        os.write(self.file, b"%s\n" % number)
        request.write(number)
        request.finish()


class Impatient(Slow):
    """The same, for a front-end that waits for all of them."""

    leaves_in_flight = False
