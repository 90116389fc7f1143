"""Findings as tables for people."""

from __future__ import annotations

from tests.bench.findings import Finding, Row

COLUMNS = "x limit", "p50 us", "p99 us"
EXPLANATION = (
    "Medians (least-most) of the undisturbed rounds, if there are any. p50, p99: as the client "
    "sees it. CPU: a request, of all processes of the side that does the work. Others' CPU: what "
    "other processes took of the machine meanwhile; more than 5 % is a disturbed sample, which is "
    "repeated. Ratios compare samples of the same round. nbdkit is met over NBD, by a Unix socket "
    "with the data in it, all others over a virtqueue in shared memory."
)


def lines(finding: Finding, rate: str = "kIOPS", cpu: str = "CPU us") -> list[str]:
    """The table of one comparison, what is missing, and our sides' ratios. `rate`: what a thousand
    requests a second are called, if a request is not what is counted; `cpu` likewise.
    """
    head = ["", rate, *COLUMNS, cpu, "others' CPU", "disturbed"]
    rows = [head, *(_cells(finding, row) for row in finding.rows if row.samples)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    found = ["", f"{finding.title} ({finding.client})"]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        found.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    for ours, base in finding.pairs():
        ratio = finding.ratio(ours, base)
        if ratio is not None:
            disturbed = "" if ratio[1] else ", always disturbed"
            found.append(f"  {ours.name} / {base.name}: {ratio[0].text(2)}{disturbed}")
    found += [f"  not measured: {name}: {why}" for name, why in finding.missing.items()]
    return found


def _cells(finding: Finding, row: Row) -> list[str]:
    limit = finding.best("limit", row.queues)
    ratio = None if limit is None else finding.ratio(row, limit)
    latency = row.figures(lambda taken: taken.p50_ns).median > 0
    return [
        row.name,
        row.figures(lambda taken: taken.rate / 1e3).text(1),
        f"{ratio[0].median:.2f}" if ratio else "",
        row.figures(lambda taken: taken.p50_ns / 1e3).text(1) if latency else "",
        row.figures(lambda taken: taken.p99_ns / 1e3).text(1) if latency else "",
        row.figures(lambda taken: taken.cpu_ns / 1e3).text(2),
        f"{row.figures(lambda taken: taken.foreign).median:.0%}",
        f"{row.disturbed} of {len(row.samples)}",
    ]
