"""Measures what README.md and docs/bench.md quote, and writes it there:

    python -m tests.bench.published            # prints it
    python -m tests.bench.published --write    # puts it between the marks of both files

It is `tests.bench --bars`, with the picture, then `tests.bench.stall` and `tests.bench.record`: a
quarter of an hour on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench import __main__ as bench
from tests.bench import bars, options, ours, record, stall
from tests.bench.backends import Missing
from tests.bench.contenders import LIMIT
from tests.bench.findings import Finding, Row
from tests.bench.lane import Cost

ROOT = Path(__file__).parents[2]
README, BENCH, PICTURE = ROOT / "README.md", ROOT / "docs/bench.md", ROOT / "docs/bench.png"
BEGIN, END = "<!-- measured by python -m tests.bench.published -->", "<!-- to here -->"
SHOWN: Mapping[str, str] = {
    "limit: memcpy": "`memcpy` in C, no ring",
    "limit: call": "`preadv` / `pwritev` in C, no ring",
    f"vuproc {bars.NATIVE}": "vuproc `blk`, which maps an image in tmpfs",
    f"vuproc {bars.CALLS}": "vuproc `blk`, `engine: sync`",
    f"vuproc {ours.PYTHON}": "vuproc `blk`, `engine: python`",
    f"vuproc {ours.VERBS}": "a handler of three verbs, in Python",
    f"vuproc {ours.BATCH}": "a handler of batches, in Python",
    "rust map": "Rust, crate `vhost-user-backend`, `mmap`",
    "rust preadv": "Rust, the same, `preadv`",
    "storage-daemon": "qemu-storage-daemon, its best",
    "nbdkit file": "nbdkit, file plugin",
    "nbdkit rust": "nbdkit, a plugin in Rust",
    "nbdkit python": "nbdkit, a plugin in Python",
}
"""The rows of the README's table, by side or family."""
WORKS = {bars.READ.name: "preadv", bars.WRITE.name: "pwritev"}
"""The comparisons in it, and what the calls alone are called there."""


def machine() -> str:
    """This machine, in words."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    virtual = any("hypervisor" in line for line in lines if line.startswith("flags"))
    kernel = ".".join(platform.release().split(".")[:2])
    python = ".".join(platform.python_version_tuple()[:2])
    kind = "virtual CPUs" if virtual else "CPUs"
    model = f" ({models[0]})" if models else ""
    return f"{len(models) or 1} {kind}{model}, Linux {kernel}, Python {python}"


def table(findings: Mapping[str, Finding]) -> list[str]:
    """Random reads and writes of every side: thousands a second, and ratios to the calls alone."""
    head = "random read, kIOPS | of the calls alone | random write, kIOPS | of the calls alone"
    lines = [f"| back-end | {head} |", "|---|---|---|---|---|"]
    for name, words in SHOWN.items():
        cells = [cell for work in WORKS for cell in _cells(findings[work], name, WORKS[work])]
        if any(cells):
            lines.append(f"| {words} | {' | '.join(cells)} |")
    return lines


def _cells(finding: Finding, name: str, call: str) -> tuple[str, str]:
    base = finding.row(f"{LIMIT}: {call}")
    row = base if name == "limit: call" else _row(finding, name)
    if row is None or base is None:
        return "", ""
    ratio = finding.ratio(row, base)
    shown = "1" if row is base else "" if ratio is None else f"{ratio[0].median:.2f}"
    return f"{row.rate.median / 1000:.0f}", shown


def _row(finding: Finding, name: str) -> Row | None:
    return finding.row(name) or finding.best(name)


def verdicts(judged: Sequence[bars.Verdict]) -> list[str]:
    """Every bar as a line of a table; those that were missed in bold."""
    lines = ["| bar | ratio | to be |", "|---|---|---|"]
    for verdict in judged:
        if verdict.ratio is None:
            shown = f"not measured: {verdict.note}"
        else:
            shown = f"{verdict.ratio:.2f}"
            if not verdict.met:
                shown = f"**{shown}**"
        lines.append(f"| {verdict.text} | {shown} | {verdict.least:g} |")
    return lines


def _met(judged: Sequence[bars.Verdict]) -> str:
    known = [verdict for verdict in judged if verdict.ratio is not None]
    return f"{sum(verdict.met for verdict in known)} of {len(known)}"


def _stall(deaths: Sequence[stall.Death]) -> str:
    stalls, gone = [death.stall for death in deaths], [death.gone for death in deaths]
    return (
        f"From SIGKILL of a worker to the driver's next completion: "
        f"{statistics.median(stalls) * 1e3:.1f} ms in the median,\n"
        f"{stall.percentile(stalls, 99) * 1e3:.1f} ms at the 99th percentile, of which the kernel "
        f"takes {statistics.median(gone) * 1e3:.1f} ms to end the process."
    )


def _record(costs: Mapping[str, Cost]) -> str:
    shown = ", ".join(f"{cost.ratio - 1:+.1%} of a {name} device's" for name, cost in costs.items())
    return f"The in-flight record costs {shown} requests."


def _disturbed(findings: Sequence[Finding]) -> str:
    rows = [row for finding in findings for row in finding.rows if row.samples]
    samples = sum(len(row.samples) for row in rows)
    return f"{sum(row.disturbed for row in rows)} of {samples} samples were disturbed."


def replaced(text: str, lines: Sequence[str]) -> str:
    """The text with other lines between its marks. Raises ValueError if it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the marks are not there")
    return "\n".join([before + begin, "", *lines, "", end + after])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.published", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into the files")
    parser.add_argument("--kills", type=int, default=200, help="of workers (200)")
    parser.add_argument("bench", nargs="*", help="further words for `tests.bench`, after --")
    chosen = parser.parse_args(arguments)
    words = ["--bars", *chosen.bench]
    if chosen.write:
        words += ["--plot", str(PICTURE)]
    try:
        found = bench.measured(options.parser().parse_args(words))
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 1
    findings = {finding.name: finding for finding in found.findings}
    on = f"On {machine()}:"
    readme = [on, "", *table(findings), "", f"{_met(found.judged)} bars were met in this run."]
    readme += ["", *_stall(stall.measure(chosen.kills)).split("\n"), _record(record.measure())]
    page = [on, "", *verdicts(found.judged), "", _disturbed(found.findings)]
    for path, lines in (README, readme), (BENCH, page):
        if chosen.write:
            content = replaced(path.read_text(encoding="utf-8"), lines)
            path.write_text(content, encoding="utf-8")
        print("\n".join(["", f"{path.relative_to(ROOT)}:", "", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
