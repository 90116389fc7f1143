"""What a request costs on a ring, beside the same work without one: `python -m tests.bench.ring`.

Run it from the root of the checkout. Every side of a comparison runs once a round, in turn, and is
compared with the first side of the same round.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from statistics import median
from typing import Any

from tests.bench import quiet
from tests.bench.devices import NativeNull, Null, Reader
from tests.bench.json_text import as_text
from tests.bench.report import Row, Table
from tests.bench.sides import Alone, OnRing, Sample, Side, Waiting, WakeUps, job, on_ring

BAR = 3.0
"""A Python handler is to take at most so many times the work alone, at the full depth."""
HANDLERS = ("blk", "a handler of three verbs")
PROBE = 500
"""Requests from which the number of a sample's is reckoned."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    give_up = time.monotonic() + options.patience
    with ExitStack() as stack:
        image = stack.enter_context(_image(options.directory, options.span))
        alone = stack.enter_context(closing(Alone(image)))
        blk = stack.enter_context(on_ring(HANDLERS[0], {"type": "blk", "image": image}))
        reader = stack.enter_context(on_ring(HANDLERS[1], Reader, image=image))
        null = stack.enter_context(on_ring("null device, Python handler", Null, works=False))
        native = stack.enter_context(
            on_ring("null device, native handler", NativeNull, works=False)
        )
        tables = [
            _compare(options, [alone, blk, reader, null, native], options.depth, waiting, give_up)
            for waiting in Waiting
        ]
        wake_ups = stack.enter_context(closing(WakeUps()))
        tables.append(
            _compare(options, [wake_ups, null, reader, blk], 1, Waiting.BOTH_SLEEP, give_up)
        )
        idle = _idle([blk, reader, null, native], options.idle)
    if options.json:
        print(as_text(_data(options, tables, idle)))
    else:
        print("\n".join(_text(options, tables, idle)))
    return 0


def _compare(
    options: argparse.Namespace,
    sides: Sequence[Side],
    depth: int,
    waiting: Waiting,
    give_up: float,
) -> Table:
    """Run all sides once a round, forth and back. From `give_up` on nothing is repeated."""
    rows = [Row(side.name) for side in sides]
    turns = list(zip(sides, rows, strict=True))
    counts: dict[str, int] = {}
    for number in range(options.rounds):
        for side, row in turns if number % 2 == 0 else reversed(turns):
            if side.name not in counts:
                counts[side.name] = _count(options, side, depth, waiting)
            work = job(count=counts[side.name], depth=depth, span=options.span, waiting=waiting)

            def sample(side: Side = side, work: Any = work) -> Sample:
                return side.run(work, waiting)

            tries = options.tries if time.monotonic() < give_up else 1
            value, measured = quiet.measure(sample, side.pids(), tries)
            row.samples.append(value)
            row.measured.append(measured)
    return Table(f"depth {depth}, {waiting.value}", rows)


def _count(options: argparse.Namespace, side: Side, depth: int, waiting: Waiting) -> int:
    if options.count:
        return int(options.count)
    probe = job(count=PROBE, depth=depth, span=options.span, waiting=waiting)
    return max(PROBE, int(options.seconds * 1e9 / side.run(probe, waiting).ns))


def _idle(sides: Sequence[OnRing], seconds: float) -> dict[str, Any]:
    """What workers with a started ring and nothing to do, and their masters, use of the CPU."""
    pids = [pid for side in sides for pid in side.pids()]
    with ExitStack() as stack:
        for side in sides:
            stack.enter_context(side.connected())
        time.sleep(min(0.5, seconds))
        before = [(quiet.ticks(pid), quiet.times(pid)) for pid in pids]
        time.sleep(seconds)
        after = [(quiet.ticks(pid), quiet.times(pid)) for pid in pids]
    used = [
        (tick - tick_before, spent - spent_before)
        for (tick, spent), (tick_before, spent_before) in zip(after, before, strict=True)
    ]
    return {
        "processes": len(pids),
        "seconds": seconds,
        "ticks": sum(tick for tick, _ in used),
        "cpu_ns": sum(spent.ran for _, spent in used),
        "wake_ups": sum(spent.turns for _, spent in used),
    }


@contextmanager
def _image(directory: str, size: int) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(dir=directory, prefix="vuproc-bench-") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        yield file.name


def _text(options: argparse.Namespace, tables: Sequence[Table], idle: dict[str, Any]) -> list[str]:
    lines = [
        f"4 KiB reads at random in {options.span >> 20} MiB of {options.directory}, one queue; "
        f"medians (least-most) of {options.rounds} rounds, of the undisturbed ones if there are",
        f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}",
        "CPU: of the side that does the work. Kicks, calls: a request. Disturbed: others took the "
        "CPUs in each try of the round.",
    ]
    for table in tables:
        lines += table.lines()
    lines.append("")
    lines += [
        _verdict(table, row)
        for table in tables
        for row in table.rows
        if row.name in HANDLERS and table.rows[0].name == Alone.name
    ]
    lines.append(
        f"idle: {idle['processes']} processes used {idle['ticks']} ticks ({idle['cpu_ns']} ns, "
        f"{idle['wake_ups']} wake-ups) in {idle['seconds']:g} s"
    )
    return lines


def _verdict(table: Table, row: Row) -> str:
    ratio, cpu = median(table.ratios(row)), median(table.cpu_ratios(row))
    said = f"{table.title}: {row.name} takes {ratio:.2f} x the work alone, {cpu:.2f} x its CPU time"
    if not table.clean(row):
        return f"{said}; always disturbed: judge by the CPU time, or try again"
    return f"{said}; the bar of {BAR:g} x is {'met' if ratio <= BAR else 'missed'}"


def _data(
    options: argparse.Namespace, tables: Sequence[Table], idle: dict[str, Any]
) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "options": vars(options),
        "tables": [table.as_data() for table in tables],
        "idle": idle,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ring", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="samples of each side (7)")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a sample (0.1)")
    parser.add_argument("--count", type=int, help="requests of a sample, instead of --seconds")
    parser.add_argument("--depth", type=int, default=32, help="requests in flight (32)")
    parser.add_argument("--span", type=_mebibytes, default=32 << 20, help="MiB read from (32)")
    parser.add_argument("--directory", default="/dev/shm", help="a tmpfs (/dev/shm)")
    parser.add_argument("--tries", type=int, default=10, help="for an undisturbed sample (10)")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds for repeats (240)")
    parser.add_argument("--idle", type=float, default=3.0, help="seconds to watch idleness (3)")
    parser.add_argument("--json", action="store_true", help="every sample, as JSON")
    return parser


def _mebibytes(text: str) -> int:
    return int(text) << 20


if __name__ == "__main__":
    sys.exit(main())
