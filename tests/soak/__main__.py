"""A soak: connections come and go, and all that can happen to a device happens to it.

    python -m tests.soak                       # all of it: hours on a small machine
    python -m tests.soak --scale 0.1 --picture docs/soak.png --table

10,000 connections, 5,000 deaths of workers, 500 of masters, reloads, upgrades, full file systems,
processes without descriptors or memory, or that stand still, and clocks that jump, in random order,
while every request is verified. Exit code 1 if anything was lost, or grows.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.soak.history import History
from tests.soak.picture import draw
from tests.soak.room import Room, enter
from tests.soak.soak import soak
from tests.soak.verdict import faults, trends

SECONDS = 6 * 3600.0
LOG_LINES = 60


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    add = parser.add_argument
    add("--scale", type=float, default=1.0, help="how much of it; each fault once at least")
    add("--seconds", type=float, default=SECONDS, help="end early after so many")
    add("--seed", type=int, default=random.randrange(1 << 32), help="of what is at random")
    add("--picture", type=Path, help="draw a PNG there (needs matplotlib)")
    add("--table", action="store_true", help="print the results as Markdown")
    add("--fault", action="append", default=[], help="this alone, and others that are named so")
    add("--each", action="store_true", help="tell of every fault when it comes")
    add("--log", type=Path, help="write the device's log there")
    options = parser.parse_args(arguments)
    without = enter("tests.soak", [*arguments, "--seed", str(options.seed)])
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vuproc-soak-") as name:
        room = Room(Path(name), without)
        try:
            history, log = soak(
                room,
                scale=options.scale,
                seed=options.seed,
                seconds=options.seconds,
                tell=lambda text: print(text, flush=True),
                each=options.each,
                only=options.fault,
            )
        finally:
            room.close()
    if options.log:
        options.log.write_text("\n".join(log) + "\n", encoding="utf-8")
    if options.picture:
        draw(history, options.picture)
    return _report(history, log, table=options.table)


def _report(history: History, log: list[str], *, table: bool) -> int:
    heads = ("fault", "done", "planned", "stall, median ms", "longest ms")
    if table:
        _markdown([heads, *history.rows()])
        rows = (
            (t.act, t.whose, t.what, str(t.first), str(t.last), f"{t.growth:+.1f}")
            for t in trends(history)
        )
        _markdown([("act", "whose", "what", "first", "last", "by the slope"), *rows])
    else:
        for row in (heads, *history.rows()):
            print(f"{row[0]:20}" + "".join(f"{cell:>18}" for cell in row[1:]))
        for trend in trends(history):
            print(f"{trend.act}: {trend}")
    print(
        f"{len(history.events)} faults and {history.requests} requests in {history.seconds:.0f} s; "
        f"{history.refused} writes were refused by a full disk"
    )
    for fault, reason in history.left_out.items():
        print(f"left out: {fault}: {reason}")
    if not any(True for _ in trends(history)):
        print("too few samples to say whether anything grows")
    bad = faults(history)
    if bad:
        print("\n".join(log[-LOG_LINES:]))
    for text in bad:
        print(f"FAULT: {text}")
    print("verdict: " + ("FAILED" if bad else "nothing lost, nothing grows"))
    return 1 if bad else 0


def _markdown(rows: Sequence[Sequence[str]]) -> None:
    print()
    for number, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if number == 0:
            print("|" + "---|" * len(row))
    print()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
