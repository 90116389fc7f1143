"""What is said of a soak at its end, as text or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tests.soak.history import History, rows
from tests.soak.verdict import Trend, faults, trends

FAULT_HEADS = ("fault", "done", "planned", "median stall, ms", "longest", "s in all")
TREND_HEADS = ("run", "act", "whose", "what", "first", "last", "by the slope", "faults")


def text(runs: Sequence[History]) -> str:
    """Columns, and a line for each thing that was counted."""
    lines = []
    for row in (FAULT_HEADS, *rows(runs)):
        lines.append(f"{row[0]:20}" + "".join(f"{cell:>18}" for cell in row[1:]))
    lines += [f"run {number}, {trend.act}: {trend}" for number, trend in _trends(runs)]
    return "\n".join(lines)


def markdown(runs: Sequence[History]) -> str:
    """The same as two tables; what was the same at each look is not in the second."""
    grown = [
        (
            str(number),
            t.act,
            t.whose,
            t.what,
            str(t.first),
            str(t.last),
            f"{t.growth:+.1f}",
            str(t.faults),
        )
        for number, t in _trends(runs)
        if t.growth or t.first != t.last
    ]
    return f"\n{_table([FAULT_HEADS, *rows(runs)])}\n\n{_table([TREND_HEADS, *grown])}\n"


def end(runs: Sequence[History]) -> tuple[list[str], str]:
    """All that must not be, in words, and the last lines."""
    bad = [
        f"run {number} (seed {run.seed}): {fault}"
        for number, run in enumerate(runs, 1)
        for fault in faults(run)
    ]
    events = sum(len(run.events) for run in runs)
    requests = sum(run.requests for run in runs)
    seconds = sum(run.seconds for run in runs)
    paused = sum(event.paused_s for run in runs for event in run.events)
    lines = [
        f"{events} faults and {requests} requests in {seconds:.0f} s, in {len(runs)} runs; the "
        f"machine stood still for {paused:.0f} s of the faults' time; "
        f"{sum(run.refused for run in runs)} writes were refused by a full disk"
    ]
    lines += [f"left out: {fault}: {why}" for fault, why in runs[-1].left_out.items()]
    if not any(True for _ in _trends(runs)):
        lines.append("too few samples to say whether anything grows")
    lines += [f"FAULT: {fault}" for fault in bad]
    lines.append("verdict: " + ("FAILED" if bad else "nothing lost, nothing grows"))
    return bad, "\n".join(lines)


def _trends(runs: Sequence[History]) -> list[tuple[int, Trend]]:
    return [(number, trend) for number, run in enumerate(runs, 1) for trend in trends(run)]


def _table(lines: Sequence[Sequence[str]]) -> str:
    made = ["| " + " | ".join(line) + " |" for line in lines]
    made.insert(1, "|" + "---|" * len(lines[0]))
    return "\n".join(made)
