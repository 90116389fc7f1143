"""Devices that the tests of `vuproc.Daemon` serve."""

from __future__ import annotations

import os
import signal
from typing import Annotated, ClassVar

from msgspec import Meta

from vuproc import Device, Options, Request


class MarkOptions(Options):
    """`mark` is written into every request; `size` is in the configuration space."""

    mark: Annotated[str, Meta(min_length=1, max_length=8)] = "m"
    size: int = 1
    trap: str = ""
    live: ClassVar[frozenset[str]] = Options.live | {"mark"}


class Mark(Device):
    """Writes its mark and its worker's process id into every request; "die" is what it says."""

    device_id = 42
    options_type = MarkOptions
    options: MarkOptions

    def config_space(self) -> bytes:
        return self.options.size.to_bytes(8, "little")

    def handle(self, request: Request) -> None:
        if request.read() == b"die":
            os.kill(os.getpid(), signal.SIGSEGV)
        written = request.write(f"{self.options.mark} {os.getpid()}".encode())
        request.finish(written)


class Failing(Mark):
    """Cannot be set up in a worker."""

    def setup(self, queue: int) -> None:
        raise RuntimeError("no hardware")


class Hopeless(Mark):
    """A worker that gets a ring dies, while the file `trap` is there."""

    def ring_started(self, queue: int) -> None:
        if self.options.trap and os.path.exists(self.options.trap):
            os.kill(os.getpid(), signal.SIGSEGV)
