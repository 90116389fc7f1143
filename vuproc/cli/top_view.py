"""What `vuproc top` shows, made of rich's parts: imported by nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vuproc.cli.stats_table import RATES_HEAD, number, rates_rows
from vuproc.ops.stats import QueueRates, Stats

_STATES = {"running": "green", "broken": "red", "waiting": "yellow", "disabled": "yellow"}
_BAD = ("worker_died", "ring_broken", "events_lost")


def view(stats: Stats, rates: Sequence[QueueRates], events: Sequence[dict[str, Any]]) -> Group:
    """The whole screen."""
    connected = "connected" if stats.connected else "no front-end"
    files = "".join(
        f"  {name} {number(allocated)}B of {number(size)}B"
        for name, (size, allocated) in stats.files.items()
    )
    queues = Table(box=None, pad_edge=False)
    for title in RATES_HEAD:
        queues.add_column(title, justify="right")
    for queue, row in zip(rates, rates_rows(rates), strict=True):
        queues.add_row(*row, style=_STATES.get(queue.state, "") if queue.state != "running" else "")
    lines = [
        Text(f"{event['time']} {event.get('text', event['event'])}", _style(event["event"]))
        for event in events
    ]
    return Group(Text(f"{stats.device}: {connected}{files}", "bold"), queues, Text(""), *lines)


def _style(event: str) -> str:
    return "red" if event in _BAD else ""
