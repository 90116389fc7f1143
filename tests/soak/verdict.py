"""Whether anything grows: the slope of what is held, once all has been taken that is taken once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import linear_regression

from tests.soak.history import History
from tests.soak.sample import KEEPER, Sample

WARM_UP = 0.25
"""How much of an act is not looked at: each path is taken once, caches fill."""
LEAST = 30
"""Samples, for a slope to mean anything."""
TOLERANCE = {"memory": 512, "descriptors": 2, "segments": 1, "processes": 1, "files": 1}
"""What may be had more at the end, by the slope: KiB, or how many. No zombie may."""


@dataclass(frozen=True)
class Trend:
    """One thing that is held, over an act."""

    act: str
    what: str
    whose: str
    first: int
    last: int
    growth: float
    """What the slope comes to, over the time that was looked at."""

    @property
    def grows(self) -> bool:
        """More than may be."""
        return self.growth > TOLERANCE.get(self.what, 0.5)

    def __str__(self) -> str:
        unit = " KiB" if self.what == "memory" else ""
        return (
            f"{self.whose}, {self.what}: from {self.first} to {self.last}{unit}, "
            f"{self.growth:+.1f} by the slope"
        )


def trends(history: History) -> Iterator[Trend]:
    """Of each act with enough samples; of the keeper over all of them, since it is always there.

    Where masters come and go, what a master holds at a sample is a matter of its age.
    """
    for act, samples in history.samples.items():
        one = len({sample.master for sample in samples}) == 1
        kept = samples[round(len(samples) * WARM_UP) :]
        if len(kept) < LEAST:
            continue
        for number, (what, whose, first) in enumerate(kept[0].values()):
            if one or whose not in ("master", "forkserver") or what != "memory":
                yield _trend(act, what, whose, first, kept, number)
    everything = [sample for samples in history.samples.values() for sample in samples]
    kept = everything[round(len(everything) * WARM_UP) :]
    if len(kept) >= LEAST:
        for number, (what, whose, first) in enumerate(kept[0].values()):
            if whose == KEEPER:
                yield _trend("all", what, whose, first, kept, number)


def _trend(act: str, what: str, whose: str, first: int, kept: list[Sample], number: int) -> Trend:
    values = [[value for _, _, value in sample.values()][number] for sample in kept]
    times = [sample.at_s for sample in kept]
    growth = linear_regression(times, values).slope * (times[-1] - times[0])
    return Trend(act, what, whose, first, values[-1], growth)


def faults(history: History) -> list[str]:
    """All that must not be, in words."""
    found = [history.failure] if history.failure else []
    return found + [f"{trend.act}: {trend}" for trend in trends(history) if trend.grows]
