"""Frames and streams of our network device, beside others': `python -m tests.bench.net`.

Run it from the root of the checkout. See docs/bench.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

from tests.bench import frames
from tests.bench.backends import Missing
from tests.bench.bars import Bar, Verdict, verdict
from tests.bench.findings import Finding
from tests.bench.net import ports, streams
from tests.bench.rounds import Effort, compare

FRAMES = "M frames/s", 1e6, "CPU ns a frame", 1.0
STREAM = "Gbit/s", 1e9 / 8, "CPU ns a KiB", 1024.0
"""Units of a rate and of what it costs, and what they are to those of a sample."""


def comparisons(only: Sequence[str], effort: Effort) -> Iterator[tuple[Finding, list[Bar]]]:
    """Each that was asked for, with what it is to show."""

    def wanted(name: str) -> bool:
        return not only or any(name.startswith(each) for each in only)

    for way in ports.Way:
        for packed in (False, True):
            name = ports.name(way, packed)
            if wanted(name):
                title = f"64 B frames, {ports.WORKS[way].title}, one {name.split(', ')[1]} queue"
                entries = ports.entries(way, packed)
                found = compare(name, title, "virtio-user", entries, effort, _say)
                yield found, [bar for bar in ports.bars() if bar.finding == name]
    for stream, title in streams.TITLES.items():
        if wanted(stream):
            yield (
                _stream(stream, title, effort),
                [bar for bar in streams.bars() if bar.finding == stream],
            )


def _stream(name: str, title: str, effort: Effort) -> Finding:
    client = "Linux under QEMU, emulated"
    try:
        with streams.apart():
            return compare(name, title, client, streams.entries(name), effort, _say)
    except Missing as missing:
        return Finding(name, title, client, [], {streams.OURS: str(missing)})


def lines(finding: Finding) -> list[str]:
    """A comparison as text."""
    rate, per_rate, cost, per_cost = STREAM if finding.name in streams.TITLES else FRAMES
    table = [["", rate, cost, "others' CPU", "disturbed"]]
    for row in finding.rows:
        if row.samples:
            table.append(
                [
                    row.name,
                    row.figures(lambda taken: taken.rate / per_rate).text(2),
                    row.figures(lambda taken: taken.cpu_ns * per_cost).text(0),
                    f"{row.figures(lambda taken: taken.foreign).median:.0%}",
                    f"{row.disturbed} of {len(row.samples)}",
                ]
            )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    found = ["", f"{finding.title} ({finding.client})"]
    for cells in table:
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        found.append("  ".join([cells[0].ljust(widths[0]), *rest]).rstrip())
    for ours, base in finding.pairs():
        ratio = finding.ratio(ours, base)
        if ratio is not None:
            disturbed = "" if ratio[1] else ", always disturbed"
            found.append(f"  {ours.name} / {base.name}: {ratio[0].text(2)}{disturbed}")
    return [*found, *(f"  not measured: {name}: {why}" for name, why in finding.missing.items())]


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    found = argparse.ArgumentParser(prog="python -m tests.bench.net", description=__doc__)
    add = found.add_argument
    add("--only", action="append", default=[], help="tx, rx, back, up, down, frames (all)")
    add("--rounds", type=int, default=7, help="samples of each side (7)")
    add("--ms", type=int, default=400, help="length of a sample (400)")
    add("--tries", type=int, default=3, help="for an undisturbed sample (3)")
    add("--patience", type=float, default=600.0, help="seconds for repeats (600)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and judge; 1 if a bar is missed."""
    options = parser().parse_args(arguments)
    effort = Effort(
        options.rounds, 0.0, options.ms, options.tries, time.monotonic() + options.patience
    )
    judged: list[Verdict] = []
    for finding, bars in comparisons(options.only, effort):
        print("\n".join(lines(finding)), flush=True)
        judged += [verdict(bar, finding) for bar in bars]
    print("\n".join(["", *(each.line() for each in judged)]))
    missed = any(each.ratio is not None and each.ratio < each.least for each in judged)
    if not options.only or any("frames".startswith(each) for each in options.only):
        print("\nFrames from our own driver, into a sink in Python and into nothing:")
        missed = frames.main(["--rounds", str(options.rounds)]) != 0 or missed
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
