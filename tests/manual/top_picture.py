"""Draws docs/top.svg: `vuproc top` of a disk under load, one of whose workers is killed.

    python -m tests.manual.top_picture

It is a run of some seconds, and what the picture says is what this machine did.
"""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from vuproc.cli.observe import TOP_EVENTS
from vuproc.cli.top_view import view
from vuproc.ops.admin import Request, ask
from vuproc.ops.stats import Stats, rates
from vuproc.testing import Guest, Job, serve

PICTURE = Path(__file__).parents[2] / "docs" / "top.svg"
TITLE = "vuproc top disk.yaml"
QUEUES, SPAN = 4, 64 << 20
DEVICE_FILE = f"""\
socket: ./disk.sock
device: {{type: blk, image: ./disk.raw, queues: {QUEUES}}}
"""
COLUMNS = 118
BOUND_S = 30.0
SECONDS = 2.0
"""Between two looks: rates are of this time."""

FONTS = re.compile(r"@font-face \{.*?\}\}\s*", re.DOTALL)
"""Of another server: a picture in a page gets none, and a page should not ask for any."""


def main() -> None:
    """Run it, and draw it."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "disk.yaml")
        path.write_text(DEVICE_FILE, encoding="utf-8")
        with Path(folder, "disk.raw").open("wb") as image:
            image.truncate(SPAN)
        with serve(path) as served, Guest(served.socket, queues=QUEUES, memory=64 << 20) as guest:
            PICTURE.write_text(drawn(served.socket, guest, served.kill_worker), encoding="utf-8")


def drawn(
    socket: Path, guest: Guest, kill_worker: Callable[[int], int], seconds: float = SECONDS
) -> str:
    """The picture of the device behind a socket, with a guest's load on all of its queues. The
    worker of one of them is killed halfway between two looks.
    """
    ends = threading.Event()
    loads = [threading.Thread(target=load, args=(guest, n, ends)) for n in range(QUEUES)]
    for each in loads:
        each.start()
    try:
        time.sleep(seconds / 2)
        before = stats(socket)
        time.sleep(seconds / 2)
        kill_worker(2)
        time.sleep(seconds / 2)
        after = stats(socket)
    finally:
        ends.set()
        for each in loads:
            each.join()
    events = events_of(socket, wanted="worker_replaced")
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(view(after, rates(before, after), events[-TOP_EVENTS:]))
    return console.export_svg(
        title=TITLE, code_format=FONTS.sub("", CONSOLE_SVG_FORMAT), unique_id="top"
    )


def stats(socket: Path) -> Stats:
    return msgspec.convert(ask(socket, Request("stats")), Stats)


def events_of(socket: Path, wanted: str) -> list[dict[str, Any]]:
    """What has happened, once one of them is there that is bound to come. Raises TimeoutError."""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        events: list[dict[str, Any]] = ask(socket, Request("events"))["events"]
        if any(event["event"] == wanted for event in events):
            return events
        time.sleep(0.02)
    raise TimeoutError(f"no {wanted} in {BOUND_S:g} s")


def load(guest: Guest, queue: int, ends: threading.Event) -> None:
    """Two reads to a write, and more on the first queues than on the last ones."""
    seed = queue
    while not ends.is_set():
        seed += QUEUES
        job = Job(count=2000, depth=16 >> queue, span=SPAN, read_percent=67, seed=seed)
        guest.load(queue, job)


if __name__ == "__main__":
    main()
