"""What a comparison found: samples a side and round, figures and ratios made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from tests.bench.contenders import LIMIT, Taken


@dataclass(frozen=True, slots=True)
class Figures:
    """Median, least and most of some values."""

    median: float
    min: float
    max: float

    @staticmethod
    def of(values: Iterable[float]) -> Figures:
        every = list(values)
        return Figures(median(every), min(every), max(every))

    def text(self, digits: int) -> str:
        return f"{self.median:.{digits}f} ({self.min:.{digits}f}-{self.max:.{digits}f})"


@dataclass(slots=True)
class Row:
    """One side: its samples by the number of the round."""

    name: str
    family: str
    queues: int
    samples: dict[int, Taken] = field(default_factory=dict)

    def figures(self, of: Callable[[Taken], float]) -> Figures:
        """Of the undisturbed samples, or of all if there are none."""
        clean = [taken for taken in self.samples.values() if taken.clean]
        return Figures.of(of(taken) for taken in clean or self.samples.values())

    @property
    def rate(self) -> Figures:
        return self.figures(lambda taken: taken.rate)

    @property
    def disturbed(self) -> int:
        return sum(not taken.clean for taken in self.samples.values())


@dataclass(slots=True)
class Finding:
    """One comparison. `missing`: sides that were not measured, and why."""

    name: str
    title: str
    client: str
    rows: list[Row]
    missing: dict[str, str]

    def row(self, name: str) -> Row | None:
        """The side of that name, if it was measured."""
        return next((row for row in self.rows if row.name == name and row.samples), None)

    def best(self, family: str, queues: int | None = None) -> Row | None:
        """The fastest of a family's configurations; of the limits the first."""
        rows = [
            row
            for row in self.rows
            if row.family == family and row.samples and queues in (None, row.queues)
        ]
        if family == LIMIT:
            return rows[0] if rows else None
        return max(rows, key=lambda row: row.rate.median, default=None)

    def families(self) -> list[str]:
        return list(dict.fromkeys(row.family for row in self.rows if row.samples))

    def ratio(
        self, row: Row, base: Row, *, of: Callable[[Taken], float] = lambda taken: taken.rate
    ) -> tuple[Figures, bool] | None:
        """Requests a second of `row` to those of `base`, or another figure of both, round by round;
        whether undisturbed.
        """
        both = [number for number in row.samples if number in base.samples]
        clean = [n for n in both if row.samples[n].clean and base.samples[n].clean]
        if not both:
            return None
        ratios = [of(row.samples[n]) / of(base.samples[n]) for n in clean or both]
        return Figures.of(ratios), bool(clean)

    def as_data(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "client": self.client,
            "rows": [_row_data(row) for row in self.rows if row.samples],
            "ratios": [
                {"of": row.name, "to": base.name, "undisturbed": found[1], **asdict(found[0])}
                for row, base in self.pairs()
                if (found := self.ratio(row, base))
            ],
            "missing": self.missing,
        }

    def pairs(self) -> list[tuple[Row, Row]]:
        """Each of our sides with the best of every other family; more queues with fewer."""
        measured = [row for row in self.rows if row.samples]
        found = [
            (row, base)
            for row in measured
            for family in self.families()
            if row.family == "vuproc" != family
            and (base := self.best(family, row.queues)) is not None
        ]
        fewest = min((row.queues for row in measured), default=1)
        found += [
            (row, base)
            for row in measured
            for base in measured
            if row.family == base.family and base.queues == fewest < row.queues
        ]
        return found


def _row_data(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "family": row.family,
        "queues": row.queues,
        "rounds": len(row.samples),
        "disturbed": row.disturbed,
        "kiops": asdict(row.figures(lambda taken: taken.rate / 1e3)),
        "p50_us": asdict(row.figures(lambda taken: taken.p50_ns / 1e3)),
        "p99_us": asdict(row.figures(lambda taken: taken.p99_ns / 1e3)),
        "cpu_us": asdict(row.figures(lambda taken: taken.cpu_ns / 1e3)),
        "foreign": asdict(row.figures(lambda taken: taken.foreign)),
        "samples": {number: asdict(taken) for number, taken in row.samples.items()},
    }
