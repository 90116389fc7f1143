"""What grows as the work grows: `python -m tests.bench.scale`.

Queues, devices, memory regions and guest memory from little to much, one at a time: memory, time to
start, time of the barriers, requests. Figures of one run each; the machine's other work shows in
the times, not in the memory. Exit code 1 if an idle worker uses the CPU or more memory than it may,
or many devices of one command need more than their share of those apart.
"""

from __future__ import annotations

import argparse
import compileall
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import vuproc
from tests.bench import plot
from tests.bench.backends import Missing
from tests.bench.json_text import as_text
from tests.bench.scale_fleet import FleetPoint, measure_fleet
from tests.bench.scale_point import DEVICES, MIB, Point, Shape, measure

AXES: dict[str, tuple[int, ...]] = {
    "queues": (1, 4, 16, 64, 256),
    "devices": (1, 4, 16, 64, 256),
    "regions": (1, 8, 32, 128, 509),
    "memory": tuple(64 * MIB << shift for shift in (0, 2, 4, 6, 8, 10)),
}
PRIVATE_BAR_KIB = {"blk": 5 * 1024, "null": 8 * 1024}
"""Private memory of a worker, by what it serves: a class of one's own is imported by each."""
IDLE_BAR_NS = 1_000_000
"""CPU time a second of one: a thousandth of a CPU."""
FLAT = "message_ns", "message_cpu_ns"
"""What is to be the same however many there are of anything."""
PACKAGE = Path(vuproc.__file__).parent
APART = 64
"""Devices that are served by a command each as well, to compare."""
SHARE_BAR = 0.4
"""By one command they may need so much of the memory of that."""
SLACK = 1.25
"""By so much a figure may grow more than its axis before it is called worse than linear."""
FILES = 16384
"""Open files that the guests of the largest points need."""

COLUMNS = {
    "start_ms": "start ms",
    "rings_ms": "rings ms",
    "message_ns": "message us",
    "message_cpu_ns": "its CPU us",
    "idle_kib": "idle MiB",
    "worker_kib": "worker MiB",
    "others_kib": "others MiB",
    "table_ms": "table ms",
    "region_ms": "region ms",
    "rate": "kreq/s",
    "cpu_ns": "CPU us",
    "idle_ns": "idle us/s",
}
FLEET_COLUMNS = {
    "start_ms": "start ms",
    "rings_ms": "rings ms",
    "memory_kib": "memory MiB",
    "processes": "processes",
    "message_ns": "message us",
    "message_cpu_ns": "its CPU us",
    "rate": "kreq/s",
    "idle_ns": "idle us/s",
}
UNITS = {
    **dict.fromkeys(("idle_kib", "worker_kib", "others_kib", "memory_kib"), 1024.0),
    **dict.fromkeys(("message_ns", "message_cpu_ns", "rate", "cpu_ns", "idle_ns"), 1e3),
}
GROWING = "start_ms", "rings_ms", "worker_kib", "others_kib", "table_ms", "region_ms", "cpu_ns"
EXPLANATION = (
    "start: a `Daemon` to its socket. rings: connection to the last ring running. message: "
    "SET_VRING_CALL of one ring until it is acknowledged, and the master's CPU time of it. idle: "
    "private memory of the largest worker before its work; worker: after that; others: of the "
    "device's other processes. table: SET_MEM_TABLE with rings running, up to 64 regions; region: "
    "ADD_MEM_REG of the last ones. kreq/s: all queues at once. CPU: of a worker a request whose "
    "buffers lie anywhere."
)
FLEET_EXPLANATION = (
    "devices: disks in memory of one queue, all by one `vuproc run FOLDER`; those of `apart` by "
    "a command each. start: to the last socket. memory: proportional set size of all processes, a "
    "device, guests' memory left out. idle: CPU time of all processes together."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    # As what is installed has it: imports are most of a start.
    compileall.compile_dir(PACKAGE, quiet=1)
    print(EXPLANATION)
    with _open_files():
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    found: dict[str, dict[int, Point]] = {}
    fleet: dict[str, FleetPoint] = {}
    fine = True
    for axis in options.axes:
        if axis == "devices":
            fine &= _run_fleet(options, fleet)
            continue
        found[axis] = points = {}
        _head(axis, COLUMNS)
        for size in _sizes(axis, options):
            grown: dict[str, Any] = {axis: size}
            shape = replace(Shape(device=options.device), **grown)
            points[size] = measure(shape, requests=options.requests, idle_s=options.idle)
            print(_line(axis, str(size), points[size], COLUMNS), flush=True)
        fine &= _judge(axis, points, PRIVATE_BAR_KIB[options.device])
    data = {
        axis: [{axis: size, **asdict(point)} for size, point in points.items()]
        for axis, points in found.items()
    }
    if fleet:
        data["devices"] = [{"devices": name, **asdict(point)} for name, point in fleet.items()]
    if options.json:
        options.json.write_text(as_text(data) + "\n", encoding="utf-8")
    if options.plot:
        try:
            plot.draw_scale(data, options.plot)
        except Missing as missing:
            print(missing)
            return 1
    return 0 if fine else 1


def _sizes(axis: str, options: argparse.Namespace) -> list[int]:
    least, most = options.least, options.most
    return [size for size in AXES[axis] if least <= size <= (most or size)]


def _run_fleet(options: argparse.Namespace, points: dict[str, FleetPoint]) -> bool:
    """Devices by one command, and as many apart; whether memory and idleness kept their bars."""
    print(f"\n{FLEET_EXPLANATION}")
    _head("devices", FLEET_COLUMNS)
    sizes = _sizes("devices", options)
    runs = [(size, False) for size in sizes]
    runs += [(APART, True)] if APART in sizes else []
    for size, apart in runs:
        name = f"{size} apart" if apart else str(size)
        points[name] = measure_fleet(
            size, apart=apart, requests=options.requests, idle_s=options.idle
        )
        print(_line("devices", name, points[name], FLEET_COLUMNS), flush=True)
    if f"{APART} apart" not in points:
        return True
    one, apart_point = points[str(APART)], points[f"{APART} apart"]
    share = one.memory_kib / apart_point.memory_kib
    kept = share <= SHARE_BAR
    print(
        f"{APART} devices by one command: {share:.0%} of the memory (bar {SHARE_BAR:.0%}) and "
        f"{one.start_ms / apart_point.start_ms:.0%} of the start of {APART} commands: "
        f"{'kept' if kept else 'not kept'}"
    )
    return kept


def _head(axis: str, columns: Mapping[str, str]) -> None:
    print(f"\n{axis:>10}  " + "  ".join(f"{name:>10}" for name in columns.values()), flush=True)


@contextmanager
def _open_files() -> Iterator[None]:
    """Allow as many as it takes meanwhile, here and in what is started."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    if soft == endless or soft >= FILES:
        yield
        return
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (FILES if hard == endless else min(FILES, hard), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _line(axis: str, size: str, point: Point | FleetPoint, columns: Mapping[str, str]) -> str:
    shown = f"{int(size) // MIB} MiB" if axis == "memory" else size
    cells = [
        f"{getattr(point, name) / UNITS.get(name, 1.0):10.{1 if name != 'cpu_ns' else 2}f}"
        for name in columns
    ]
    return f"{shown:>10}  " + "  ".join(cells)


def _judge(axis: str, points: dict[int, Point], bar_kib: int) -> bool:
    """Say what grew more than its axis; whether idle workers kept their bars."""
    if not points:
        return True
    first, last = min(points), max(points)
    for name in GROWING:
        before, after = getattr(points[first], name), getattr(points[last], name)
        if before and after / before > SLACK * last / first:
            print(f"worse than linear: {COLUMNS[name]} grew {after / before:.1f} times")
    for name in FLAT:
        before, after = getattr(points[first], name), getattr(points[last], name)
        print(f"{COLUMNS[name]}: {after / before:.2f} times that of the smallest")
    memory = max(point.worker_kib for point in points.values())
    idle = max(point.idle_ns for point in points.values())
    kept = memory <= bar_kib and idle <= IDLE_BAR_NS
    print(
        f"largest worker {memory / 1024:.1f} MiB (bar {bar_kib // 1024}), busiest idle "
        f"worker {idle / 1e3:.0f} us a second (bar {IDLE_BAR_NS // 1000}): "
        f"{'kept' if kept else 'not kept'}"
    )
    return kept


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    add = parser.add_argument
    add("--axes", type=_axes, default=list(AXES), help=f"{','.join(AXES)} (all)")
    add("--most", type=int, help="leave out larger sizes than this (memory is in bytes)")
    add("--least", type=int, default=0, help="leave out smaller sizes")
    add("--device", choices=tuple(DEVICES), default="null", help="what is served (null)")
    add("--requests", type=int, default=200_000, help="of each of a point's two runs (200000)")
    add("--idle", type=float, default=1.0, help="seconds to watch idleness (1)")
    add("--plot", type=Path, help="draw it there, a PNG (pip install vuproc[bench])")
    add("--json", type=Path, help="write everything there")
    return parser


def _axes(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [each for each in chosen if each not in AXES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(AXES)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
