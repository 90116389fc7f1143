"""The findings as text and as JSON: medians with the least and the most of all rounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from tests.bench.quiet import Measured
from tests.bench.sides import Sample


@dataclass(slots=True)
class Row:
    """One side of a comparison: a sample a round, and how disturbed each was."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    @property
    def disturbed(self) -> int:
        return sum(not one.clean for one in self.measured)


@dataclass(slots=True)
class Table:
    """Sides that were measured in turn. The first row is what the others are compared with."""

    title: str
    rows: list[Row]

    def clean(self, row: Row) -> int:
        """Rounds in which neither the row's sample nor the first row's was disturbed."""
        return sum(
            mine.clean and base.clean
            for mine, base in zip(row.measured, self.rows[0].measured, strict=True)
        )

    def pairs(self, row: Row) -> list[tuple[Sample, Sample]]:
        """(the row's sample, the first row's) of each round; of the clean rounds, if there are."""
        base = self.rows[0]
        both = list(zip(row.samples, base.samples, strict=True))
        clean = [
            pair
            for pair, mine, other in zip(both, row.measured, base.measured, strict=True)
            if mine.clean and other.clean
        ]
        return clean or both

    def ratios(self, row: Row) -> list[float]:
        """Time of the row's samples to that of the first row's, round by round."""
        return [mine.ns / base.ns for mine, base in self.pairs(row)]

    def cpu_ratios(self, row: Row) -> list[float]:
        """The same with CPU time of the side that does the work."""
        return [mine.cpu_ns / base.cpu_ns for mine, base in self.pairs(row)]

    def lines(self) -> list[str]:
        """The table as text."""
        head = [
            "",
            "ns a request",
            "x the first",
            "CPU ns",
            "x",
            "kicks",
            "calls",
            "p50 us",
            "disturbed",
        ]
        cells = [self._cells(row) for row in self.rows]
        widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
        return [
            "",
            self.title,
            *(
                "  ".join(
                    [line[0].ljust(widths[0])]
                    + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
                )
                for line in [head, *cells]
            ),
        ]

    def _cells(self, row: Row) -> list[str]:
        samples = [mine for mine, _ in self.pairs(row)]
        return [
            row.name,
            _spread([one.ns for one in samples], 0),
            _spread(self.ratios(row), 2),
            _spread([one.cpu_ns for one in samples], 0),
            _spread(self.cpu_ratios(row), 2),
            f"{median(one.kicks for one in samples):.2f}",
            f"{median(one.calls for one in samples):.2f}",
            f"{median(one.median_ns for one in samples) / 1000:.1f}",
            f"{row.disturbed} of {len(row.samples)}",
        ]

    def as_data(self) -> dict[str, Any]:
        """All of it, for JSON; `samples` are those that the figures are made of."""
        return {"title": self.title, "rows": [self._row_data(row) for row in self.rows]}

    def _row_data(self, row: Row) -> dict[str, Any]:
        samples = [mine for mine, _ in self.pairs(row)]
        return {
            "name": row.name,
            "ns": _figures(one.ns for one in samples),
            "ratio": _figures(self.ratios(row)),
            "cpu_ns": _figures(one.cpu_ns for one in samples),
            "cpu_ratio": _figures(self.cpu_ratios(row)),
            "samples": [asdict(one) for one in samples],
            "rounds": len(row.samples),
            "disturbed": row.disturbed,
        }


def _figures(values: Iterable[float]) -> dict[str, float]:
    every = list(values)
    return {"median": median(every), "min": min(every), "max": max(every)}


def _spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
