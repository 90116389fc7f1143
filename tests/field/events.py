"""Waiting for what a test has caused, with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vuproc.ops.admin import AdminError, Request, ask
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served

BOUND_S = 30.0
LOOK_S = 0.005
"""Pause between two looks at what nothing announces."""


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Look again and again, for `BOUND_S` at most."""
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {BOUND_S:g} s: {what}"
        time.sleep(LOOK_S)


def wait_for_lines(file: Path, count: int) -> None:
    """Until the file is there and has so many lines."""
    wait_until(
        lambda: file.exists() and len(file.read_text().splitlines()) >= count,
        f"{count} lines in {file}",
    )


def status(device: Served | Path) -> dict[str, Any]:
    """What a device, or that at a socket, says of itself; it may be starting."""
    socket = device if isinstance(device, Path) else device.socket
    deadline = time.monotonic() + BOUND_S
    while True:
        try:
            return ask(socket, Request("status"))
        except AdminError:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_S)


def queue_status(served: Served, queue: int = 0) -> dict[str, Any]:
    """The part about one queue."""
    found: dict[str, Any] = status(served)["queues"][queue]
    return found


def say(guest: Guest, text: str = "", queue: int = 0) -> str:
    """One request with a text, and the text of its answer."""
    done = guest.do(queue, [text.encode() or b"?"], [64], timeout_s=BOUND_S)
    return done.content[: done.written].decode()
