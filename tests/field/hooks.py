"""A device whose hooks take as long as a test wants, for tests of what waits for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from vuproc import Device, Options, Request
from vuproc.options import FilePath


class HookOptions(Options, kw_only=True):
    slow: Annotated[str, Meta(description="The hook that takes its time.")] = ""
    gate: Annotated[FilePath, Meta(description="A FIFO; a hook ends when somebody opens it.")] = ""
    armed: Annotated[FilePath, Meta(description="No hook takes its time while this is not there.")]
    entered: Annotated[FilePath, Meta(description="Gets a line for each hook that does.")]


class Hooked(Device):
    """Device id 42; answers with its worker's process id."""

    device_id = 42
    options_type = HookOptions
    options: HookOptions

    def config_space(self) -> bytes:
        return bytes(8)

    def setup(self, queue: int) -> None:
        self._hook("setup")

    def ring_started(self, queue: int) -> None:
        self._hook("ring_started")

    def config_written(self, offset: int, data: bytes) -> None:
        self._hook("config_written")

    def handle(self, request: Request) -> None:
        request.write(str(os.getpid()).encode())

    def _hook(self, name: str) -> None:
        if name != self.options.slow or not Path(self.options.armed).exists():
            return
        with open(self.options.entered, "a", encoding="ascii") as file:
            file.write(f"{name}\n")
        with open(self.options.gate, "rb"):  # until somebody opens it for writing
            pass
