"""A device whose hooks take as long as a test wants, or end badly, for tests of what follows."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from vuproc import Device, Options, Request
from vuproc.options import FilePath


class HookOptions(Options, kw_only=True):
    slow: Annotated[str, Meta(description="The hook that takes its time.")] = ""
    only: Annotated[int, Meta(description="For this queue alone; -1: for each.")] = -1
    then: Annotated[
        Literal["wait", "die", "raise"],
        Meta(description="What the hook does: wait at the gate, die once, or raise."),
    ] = "wait"
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
        self._hook("setup", queue)

    def ring_started(self, queue: int) -> None:
        self._hook("ring_started", queue)

    def config_written(self, offset: int, data: bytes) -> None:
        self._hook("config_written")

    def handle(self, request: Request) -> None:
        request.write(str(os.getpid()).encode())

    def _hook(self, name: str, queue: int = -1) -> None:
        armed = Path(self.options.armed)
        if name != self.options.slow or self.options.only not in (-1, queue) or not armed.exists():
            return
        with open(self.options.entered, "a", encoding="ascii") as file:
            file.write(f"{name}\n")
        if self.options.then == "raise":
            raise RuntimeError("not just now")
        if self.options.then == "die":
            armed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self.options.gate, "rb"):  # until somebody opens it for writing
            pass
