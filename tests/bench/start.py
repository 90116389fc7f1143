"""How long a device takes to start: `vuproc run FILE`, from the command to its socket.

    python -m tests.bench.start                      # 1 queue and 64
    python -m tests.bench.start --queues 256 --starts 5

A disk in memory, by native code, all of whose workers are there when the socket is. Sizes take
turns. Prints the median, with the least and the most; 64 queues are to start in under 300 ms on a
machine with nothing else to do, and the exit code is 1 if they do not.
"""

from __future__ import annotations

import argparse
import compileall
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.scale import PACKAGE
from tests.bench.scale_fleet import await_sockets, running_command
from vuproc.ops.admin import Request, ask

BARS_MS = {64: 300.0}
"""By the number of queues."""


def start_ms(queues: int) -> float:
    """One start. Raises RuntimeError, or AdminError, if nothing comes of it."""
    with tempfile.TemporaryDirectory(prefix="vuproc-start-") as name:
        file, socket = Path(name, "disk.yaml"), Path(name, "disk.sock")
        device = f"{{type: blk, ram: 64MiB, queues: {queues}}}"
        file.write_text(f"socket: {socket}\ndevice: {device}\n", encoding="utf-8")
        began = time.monotonic()
        with running_command([str(file)]) as process:
            await_sockets([socket], [process])
            taken = time.monotonic() - began
            ask(socket, Request("status"))  # once that is answered the end is no cut in the start
            return taken * 1e3


def verdict(queues: int, middle_ms: float) -> tuple[bool, str]:
    """Whether a median keeps what it is to keep, and that in words."""
    bar = BARS_MS.get(queues)
    if bar is None:
        return True, ""
    kept = middle_ms < bar
    return kept, f", the bar is {bar:g}: {'met' if kept else 'missed'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.start", description=__doc__)
    parser.add_argument("--queues", default="1,64", help="of the device, a start each (1,64)")
    parser.add_argument("--starts", type=int, default=12, help="of each (12)")
    options = parser.parse_args(arguments)
    # As what is installed has it: imports are most of a start.
    compileall.compile_dir(PACKAGE, quiet=1)
    sizes = [int(word) for word in options.queues.split(",")]
    print(f"{options.starts} starts each, load average {os.getloadavg()[0]:.1f} before")
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(options.starts):
        for size in sizes:
            taken[size].append(start_ms(size))
    fine = True
    for size, values in taken.items():
        middle = statistics.median(values)
        kept, said = verdict(size, middle)
        fine &= kept
        print(f"{size:4} queues: {middle:.0f} ms ({min(values):.0f}-{max(values):.0f}){said}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
