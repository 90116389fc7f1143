"""A soak: connections come and go, and all that can happen to a device happens to it.

    python -m tests.soak                       # all of it: a quarter of an hour, or hours
    python -m tests.soak --scale 0.1 --picture docs/soak.png --table
    python -m tests.soak --runs soak.jsonl     # what is left of it after the runs in this file

10,000 connections, 5,000 deaths of workers, 500 of masters, reloads, upgrades, full file systems,
processes without descriptors or memory, or that stand still, and clocks that jump, in random order,
while every request is verified. Exit code 1 if anything was lost, or grows. SIGINT and SIGTERM have
it end early.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.soak import report, runs
from tests.soak.history import History, joined
from tests.soak.picture import draw
from tests.soak.room import Room, enter
from tests.soak.soak import soak

SECONDS = 6 * 3600.0
LOG_LINES = 60


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    add = parser.add_argument
    add("--scale", type=float, default=1.0, help="how much of it; each fault once at least")
    add("--seconds", type=float, default=SECONDS, help="end early after so many")
    add("--seed", type=int, default=random.randrange(1 << 32), help="of what is at random")
    add("--runs", type=Path, help="do what the runs in this file have left, and add to them")
    add("--picture", type=Path, help="draw a PNG there (needs matplotlib)")
    add("--table", action="store_true", help="print the results as Markdown")
    add("--fault", action="append", default=[], help="this alone, and others that are named so")
    add("--each", action="store_true", help="tell of every fault when it comes")
    add("--log", type=Path, help="write the device's log there")
    options = parser.parse_args(arguments)
    if options.picture and find_spec("matplotlib") is None:
        parser.error("a picture needs matplotlib: pip install 'vuproc[bench]'")
    without = enter("tests.soak", [*arguments, "--seed", str(options.seed)])
    print(f"seed {options.seed}", flush=True)
    earlier = runs.load(options.runs) if options.runs else []
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: signals.append(number))
    ends = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="vuproc-soak-") as name:
        room = Room(Path(name), without)
        try:
            run, log = soak(
                room,
                scale=options.scale,
                seed=options.seed,
                is_over=lambda: bool(signals) or time.monotonic() > ends,
                done=runs.done(earlier),
                tell=lambda text: print(text, flush=True),
                each=options.each,
                only=options.fault,
            )
        finally:
            room.close()
    if options.runs:
        runs.add(options.runs, run)
    if options.log:
        options.log.write_text("\n".join(log) + "\n", encoding="utf-8")
    together = runs.load(options.runs) if options.runs else [run]
    if options.picture:
        draw(joined(together), options.picture)
    return _report(together, run, log, table=options.table)


def _report(together: Sequence[History], run: History, log: list[str], *, table: bool) -> int:
    print(report.markdown(together) if table else report.text(together))
    bad, end = report.end(together)
    if report.end([run])[0]:
        print("\n".join(log[-LOG_LINES:]))
    print(end)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
