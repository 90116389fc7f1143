"""A device with work beside that of its queue, which fails as it is told to."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from vuproc import Device, Fd, Options, Request

BOUND_S = 30.0


class HelpedOptions(Options, kw_only=True):
    notes: Annotated[str, Meta(description="A file with a line for what has happened.")]
    fails: Annotated[int, Meta(description="So many times it fails at once.")] = 0
    never_ends: Annotated[bool, Meta(description="It does not look at the end.")] = False


class Helped(Device):
    device_id = 42
    queues = 1
    options_type = HelpedOptions
    options: HelpedOptions

    def has_helper(self) -> bool:
        return True

    def helper_end_s(self) -> float:
        return 0.5 if self.options.never_ends else BOUND_S

    def details(self) -> dict[str, dict[str, str | int]]:
        return {"notes": {"lines": len(self._lines())}}

    def run_helper(self, ending: Fd) -> None:
        self._note("begins")
        if self._lines().count("begins") <= self.options.fails:
            raise ValueError("as it was told to")
        if self.options.never_ends:
            time.sleep(BOUND_S)
        select.select([ending], [], [])
        self._note("ends")

    def teardown(self) -> None:
        self._note("worker")

    def handle(self, request: Request) -> None:
        request.finish(0)

    def _lines(self) -> list[str]:
        path = Path(self.options.notes)
        return path.read_text().splitlines() if path.exists() else []

    def _note(self, line: str) -> None:
        file = os.open(self.options.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, f"{line}\n".encode())
        os.close(file)
