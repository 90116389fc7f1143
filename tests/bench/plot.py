"""A picture of the findings: `pip install vuproc[bench]` brings the library that draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.backends import Missing
from tests.bench.findings import Finding

COLORS = {
    "limit": "#9e9e9e",
    "vuproc": "#1f6f4a",
    "storage-daemon": "#c0504d",
    "rust preadv": "#d98c2b",
    "rust map": "#e8b96f",
    "nbdkit file": "#5b7fa6",
    "nbdkit rust": "#4aa3a3",
    "nbdkit python": "#8e6fa8",
}
HEIGHT, WIDTH, TITLE = 0.28, 9.0, 0.9
"""Inches: of a bar, of the picture, of a comparison's title and axis."""


SCALES = {
    "start_ms": ("start, s", 1e3),
    "message_ns": ("a message, us", 1e3),
    "memory_kib": ("memory a device, MiB", 1024.0),
    "worker_kib": ("memory of the largest worker, MiB", 1024.0),
    "idle_ns": ("idle: CPU time a second, ms", 1e6),
}
"""What is drawn of a scale: by the name of the figure, what it is and by how much it is divided."""


def draw_scale(data: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Write a PNG: a row an axis, a panel a figure. Raises Missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Missing("a plot needs matplotlib: pip install vuproc[bench]") from None
    shown = {axis: rows for axis, rows in data.items() if rows}
    if not shown:
        raise Missing("there is nothing to draw")
    figure = Figure(figsize=(3.2 * 4, 2.6 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(shown), 4, squeeze=False)
    for (axis, rows), panels in zip(shown.items(), grid, strict=True):
        names = [name for name in SCALES if name in rows[0]]
        for name, panel in zip(names, panels, strict=True):
            what, unit = SCALES[name]
            sizes = [int(str(row[axis]).split()[0]) for row in rows]
            values = [row[name] / unit for row in rows]
            apart = [not str(row[axis]).isdecimal() for row in rows]
            for marks, wanted in (("o-", False), ("rx", True)):
                points = [
                    (size, value)
                    for size, value, found in zip(sizes, values, apart, strict=True)
                    if found is wanted
                ]
                if points:
                    panel.plot(*zip(*points, strict=True), marks, ms=4)
            panel.set_xscale("log", base=2)
            panel.set_xticks(sorted(set(sizes)), [str(size) for size in sorted(set(sizes))])
            panel.set_ylim(0, 1.1 * max(*values, 1e-3))
            panel.set_title(what, fontsize=9, loc="left")
            panel.set_xlabel(axis, fontsize=8)
            panel.tick_params(labelsize=7)
            panel.grid(linewidth=0.3)
            if any(apart):
                panel.legend(["by one command", "by a command each"], fontsize=7)
    figure.savefig(path, dpi=110)


def draw(findings: Sequence[Finding], path: Path) -> None:
    """Write a PNG: a panel a comparison, a bar a side. Raises Missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Missing("a plot needs matplotlib: pip install vuproc[bench]") from None
    shown = [finding for finding in findings if any(row.samples for row in finding.rows)]
    if not shown:
        raise Missing("there is nothing to draw")
    heights = [TITLE + HEIGHT * sum(bool(row.samples) for row in each.rows) for each in shown]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)
    for panel, finding in zip(panels[:, 0], shown, strict=True):
        rows = [row for row in finding.rows if row.samples][::-1]
        rates = [row.figures(lambda taken: taken.rate / 1e3) for row in rows]
        middles = [rate.median for rate in rates]
        spread = [
            [rate.median - rate.min for rate in rates],
            [rate.max - rate.median for rate in rates],
        ]
        panel.barh(
            [row.name for row in rows],
            middles,
            xerr=spread,
            color=[COLORS.get(row.family, "#444444") for row in rows],
            error_kw={"elinewidth": 1, "ecolor": "#222222"},
        )
        panel.set_title(f"{finding.title} ({finding.client})", fontsize=9, loc="left")
        panel.set_xlabel("kIOPS", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", linewidth=0.3)
        panel.set_axisbelow(True)
    figure.savefig(path, dpi=130)
