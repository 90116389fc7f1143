"""Bars of a bench with sides of its own: what was measured beside what it is held to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.bench.findings import Finding


@dataclass(frozen=True, slots=True)
class Bar:
    """In the comparison `finding` side `of` does at least so many times what side `to` does."""

    finding: str
    of: str
    to: str
    at_least: float


def verdicts(bars: Iterable[Bar], findings: Sequence[Finding]) -> tuple[list[str], bool]:
    """A line a bar, and whether all of them were met."""
    lines, every = [], True
    for bar in bars:
        what = f"{bar.finding}: {bar.of} / {bar.to}"
        ratio = _ratio(bar, findings)
        if ratio is None:
            lines.append(f"{what}: not measured")
            every = False
            continue
        met = ratio >= bar.at_least
        every = every and met
        lines.append(f"{what}: {ratio:.2f}, to be {bar.at_least:g}: {'met' if met else 'NOT met'}")
    return lines, every


def _ratio(bar: Bar, findings: Sequence[Finding]) -> float | None:
    for finding in findings:
        of, to = finding.row(bar.of), finding.row(bar.to)
        if finding.name == bar.finding and of is not None and to is not None:
            found = finding.ratio(of, to)
            return None if found is None else found[0].median
    return None
