"""Tells the demonstration's story: serve a disk, drive it on all queues, boot Linux on it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from vuproc.errors import VuprocError
from vuproc.testing.demo.driver import drive
from vuproc.testing.demo.guest import boot
from vuproc.testing.serve import serve

MIB = 1 << 20
QUEUES_MAX = 16

DEVICE_FILE = """\
socket: ./disk.sock
device:
  type: blk
  image: ./disk.raw
  queues: {queues}
  serial: demo-0
"""


def main() -> int:
    """Runs it; the exit code is 0 if every check held, 1 if one did not."""
    parser = argparse.ArgumentParser(prog="python -m vuproc.testing.demo", description=__doc__)
    parser.add_argument("--queues", type=int, default=4, help="virtqueues of the disk (1 to 16)")
    parser.add_argument("--size", type=int, default=64, help="size of the disk in MiB (from 16)")
    parser.add_argument("--no-guest", action="store_true", help="only the built-in driver")
    options = parser.parse_args()
    if not 1 <= options.queues <= QUEUES_MAX or options.size < 16:
        parser.error("1 to 16 queues and at least 16 MiB are wanted")
    console = Console(highlight=False)
    try:
        tell(console, queues=options.queues, size=options.size * MIB, guest=not options.no_guest)
    except (VuprocError, OSError) as error:
        console.print("[bold red]failed:[/]", Text(str(error)), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print("[bold green]Everything that was written was read back the same.[/]")
    return 0


def tell(console: Console, *, queues: int, size: int, guest: bool) -> None:
    """The story from the empty image to the end. Raises what says why a part of it failed."""
    with tempfile.TemporaryDirectory(prefix="vuproc-demo-") as name:
        directory = Path(name)
        image = directory / "disk.raw"
        with image.open("wb") as file:
            os.truncate(file.fileno(), size)
        device_file = directory / "disk.yaml"
        device_file.write_text(DEVICE_FILE.format(queues=queues))
        heading(console, f"vuproc run disk.yaml: a disk of {size // MIB} MiB, {queues} queues")
        console.print(Syntax(device_file.read_text(), "yaml", background_color="default"))
        with serve(device_file) as served:
            heading(console, "The built-in driver: every queue at once")
            drive(console, served, image, queues)
            if guest:
                heading(console, "A Linux guest")
                boot(console, served.socket, image, queues)
    console.print("\nvuproc run drained, removed its socket and ended with exit code 0.")


def heading(console: Console, text: str) -> None:
    """A rule with a title."""
    console.print()
    console.rule(f"[bold]{text}", align="left")


if __name__ == "__main__":
    sys.exit(main())
