"""The picture of a soak: what was held, and how long queues stood still, over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.soak.history import History
from tests.soak.sample import ROLES

INCHES = (11.0, 12.0)
DPI = 100
LOOKS = (
    ("o", "tab:blue"),
    ("x", "tab:orange"),
    ("^", "tab:green"),
    ("s", "tab:red"),
    ("v", "tab:purple"),
    ("D", "tab:brown"),
    ("*", "black"),
    ("P", "tab:pink"),
    ("<", "tab:olive"),
    (">", "tab:cyan"),
    ("+", "tab:gray"),
)
"""Marker and colour of each kind of fault: no two have either."""
OFTEN = 1000
"""Kinds with more events have smaller markers, below the others'."""


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
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", markerscale=1.5)
    stalls.set_xlabel("seconds")
    figure.suptitle(
        f"{len(history.events)} faults, {history.requests} verified requests, seed {history.seed}"
    )
    figure.savefig(path, dpi=DPI)


def _stalls(axes: Any, history: History) -> None:
    for name, (marker, colour) in zip(history.planned, LOOKS, strict=False):
        # A stall in which the machine stood still says nothing.
        mine = [event for event in history.events if event.fault == name and not event.paused_s]
        often = len(mine) > OFTEN
        axes.plot(
            [event.at_s for event in mine],
            [max(0.1, event.stall_s * 1000) for event in mine],
            linestyle="",
            marker=marker,
            color=colour,
            markersize=2 if often else 5,
            zorder=1 if often else 3,
            label=name,
        )
    axes.set_yscale("log")
    axes.set_ylabel("stall after a fault, ms")


def _mark_acts(axes: Any, history: History) -> None:
    for samples in history.samples.values():
        if samples:
            axes.axvline(samples[0].at_s, color="grey", linestyle=":")
