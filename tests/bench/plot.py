"""A picture of the findings: `pip install vuproc[bench]` brings the library that draws it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
