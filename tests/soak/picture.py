"""The picture of a soak: what was held, and how long queues stood still, over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.soak.history import History
from tests.soak.sample import ROLES

INCHES = (11.0, 12.0)
DPI = 100
MARKERS = ".xv^s+"
"""With the ten colours there are enough to tell all kinds apart."""


def draw(history: History, path: Path) -> None:
    """Write a PNG. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    memory, fds, others, stalls = figure.subplots(4, 1, sharex=True)
    samples = [sample for each in history.samples.values() for sample in each]
    times = [sample.at_s for sample in samples]
    for role in ROLES:
        memory.plot(times, [sample.memory[role] / 1024 for sample in samples], label=role)
        fds.plot(times, [sample.fds[role] for sample in samples], label=role)
    others.plot(times, [sample.processes for sample in samples], label="processes")
    others.plot(times, [sample.zombies for sample in samples], label="zombies")
    others.plot(times, [sample.segments for sample in samples], label="segments in /dev/shm")
    others.plot(times, [sample.shm_kib for sample in samples], label="KiB in /dev/shm")
    _stalls(stalls, history)
    for axes, what in (memory, "anonymous memory, MiB"), (fds, "descriptors"), (others, "others"):
        axes.set_ylabel(what)
        axes.set_ylim(bottom=0)
    for axes in memory, fds, others, stalls:
        _mark_acts(axes, history)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    stalls.set_xlabel("seconds")
    figure.suptitle(
        f"{len(history.events)} faults, {history.requests} verified requests, seed {history.seed}"
    )
    figure.savefig(path, dpi=DPI)


def _stalls(axes: Any, history: History) -> None:
    for number, name in enumerate(history.planned):
        mine = [event for event in history.events if event.fault == name]
        axes.plot(
            [event.at_s for event in mine],
            [max(0.1, event.stall_s * 1000) for event in mine],
            linestyle="",
            marker=MARKERS[number % len(MARKERS)],
            markersize=3,
            label=name,
        )
    axes.set_yscale("log")
    axes.set_ylabel("stall after a fault, ms")


def _mark_acts(axes: Any, history: History) -> None:
    for samples in history.samples.values():
        if samples:
            axes.axvline(samples[0].at_s, color="grey", linestyle=":")
