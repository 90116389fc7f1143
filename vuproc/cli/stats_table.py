"""Numbers of a device as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from vuproc.ops.stats import QueueRates, Stats
from vuproc.shm.counter_table import percentile

_UNITS = ("", "k", "M", "G", "T", "P", "E")


def number(value: float) -> str:
    """With three digits and a decimal prefix: 1.23k."""
    power = 0
    while abs(value) >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    if not power and float(value).is_integer():
        return str(int(value))
    return f"{value:.3g}{_UNITS[power]}"


def duration(nanoseconds: float) -> str:
    """With its unit: 1.23 ms; "-" for none."""
    if nanoseconds <= 0:
        return "-"
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= factor:
            return f"{nanoseconds / factor:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"


TOTALS_HEAD = (
    "queue", "state", "in flight", "requests", "read", "written", "errors", "kicks", "calls",
    "restarts", "mean", "p50", "p99",
)  # fmt: skip


def totals_table(stats: Stats) -> str:
    """Since the device is served."""
    rows = []
    for queue in stats.queues:
        counters, requests = queue.counters, sum(queue.latency)
        errors = sum(counters[name] for name in ("errors", "skipped", "call_errors", "breaks"))
        rows.append(
            (
                str(queue.queue),
                queue.state,
                str(queue.in_flight),
                number(counters["requests"]),
                number(counters["bytes_read"]),
                number(counters["bytes_written"]),
                number(errors),
                number(counters["kicks"]),
                number(counters["calls"]),
                number(counters["restarts"]),
                duration(counters["latency_total_ns"] / requests if requests else 0),
                duration(percentile(queue.latency, 0.5)),
                duration(percentile(queue.latency, 0.99)),
            )
        )
    connected = "connected" if stats.connected else "no front-end"
    files = [
        f"{name}: {number(allocated)}B of {number(size)}B allocated"
        for name, (size, allocated) in stats.files.items()
    ]
    return "\n".join([f"{stats.device}: {connected}", *files, *table(TOTALS_HEAD, rows)])


RATES_HEAD = (
    "queue", "state", "in flight", "requests/s", "read B/s", "written B/s", "errors/s", "kicks/s",
    "calls/s", "mean", "p50", "p99",
)  # fmt: skip


def rates_rows(rates: Sequence[QueueRates]) -> list[tuple[str, ...]]:
    """A row a queue, below `RATES_HEAD`."""
    return [
        (
            str(queue.queue),
            queue.state,
            str(queue.in_flight),
            number(queue.rates["requests"]),
            number(queue.rates["bytes_read"]),
            number(queue.rates["bytes_written"]),
            number(queue.rates["errors"]),
            number(queue.rates["kicks"]),
            number(queue.rates["calls"]),
            duration(queue.mean_ns),
            duration(queue.p50_ns),
            duration(queue.p99_ns),
        )
        for queue in rates
    ]


def rates_table(rates: Sequence[QueueRates]) -> str:
    """Between two looks."""
    return "\n".join(table(RATES_HEAD, rates_rows(rates)))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose cells are aligned to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (head, *rows)
    ]
