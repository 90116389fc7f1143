"""Whether anything grows: the slope of what is held, once all has been taken that is taken once.

The slope is one over faults, not over time: a machine that stands still leaks nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import linear_regression

from tests.soak.history import History
from tests.soak.sample import FORKSERVER, KEEPER, MASTER, Sample

WARM_UP = 0.25
"""How much of an act is not looked at: each path is taken once, caches fill."""
WARM_UP_FAULTS = 200
"""Of which nothing is said about memory in any case: pages of what was freed at the start are used
again, one after the other.
"""
LEAST = 30
"""Samples, for a slope to mean anything."""
TOLERANCE = {"descriptors": 2, "segments": 1, "processes": 1, "files": 1}
"""How many may be had more at the end, by the slope. No zombie may."""
LEAK_BYTES = 40
"""Memory that may be had more for each fault: less than an integer in a list takes, or any text."""
SCATTERED_KIB = 128
"""Memory that may be had more in any case: a page is held for one object that is left in it."""


@dataclass(frozen=True)
class Trend:
    """One thing that is held, over an act."""

    act: str
    what: str
    whose: str
    first: int
    last: int
    growth: float
    """What the slope comes to, over the faults that were looked at."""
    faults: int
    """How many these are."""

    @property
    def tolerance(self) -> float:
        """What may be had more: KiB, or how many."""
        if self.what == "memory":
            return max(SCATTERED_KIB, self.faults * LEAK_BYTES / 1024)
        return TOLERANCE.get(self.what, 0.5)

    @property
    def grows(self) -> bool:
        """More than may be."""
        return self.growth > self.tolerance

    def __str__(self) -> str:
        unit, rate = "", ""
        if self.what == "memory":
            unit, rate = " KiB", f", {self.growth * 1024 / self.faults:+.1f} bytes a fault"
        return (
            f"{self.whose}, {self.what}: from {self.first} to {self.last}{unit}, "
            f"{self.growth:+.1f} by the slope over {self.faults} faults{rate}"
        )


def trends(history: History) -> Iterator[Trend]:
    """Of each act with enough samples; of the keeper over all of them, since it is always there.

    Where masters come and go, what a master holds at a sample is a matter of its age.
    """
    ends = [event.at_s for event in history.events]
    for act, samples in history.samples.items():
        one = len({sample.master for sample in samples}) == 1
        for trend in _of_act(act, samples, ends):
            if one or trend.whose not in (MASTER, FORKSERVER) or trend.what != "memory":
                yield trend
    everything = [sample for samples in history.samples.values() for sample in samples]
    for trend in _of_act("all", everything, ends):
        if trend.whose == KEEPER:
            yield trend


def _of_act(act: str, samples: Sequence[Sample], ends: Sequence[float]) -> Iterator[Trend]:
    kept = samples[round(len(samples) * WARM_UP) :]
    if len(kept) < LEAST:
        return
    faults = [bisect_right(ends, sample.at_s) for sample in kept]
    late = bisect_right(faults, bisect_right(ends, samples[0].at_s) + WARM_UP_FAULTS)
    for number, (what, whose, _) in enumerate(kept[0].values()):
        skipped = late if what == "memory" else 0
        values = [[value for _, _, value in sample.values()][number] for sample in kept[skipped:]]
        if len(values) >= LEAST:
            yield _trend(act, what, whose, values, faults[skipped:])


def _trend(act: str, what: str, whose: str, values: list[int], faults: list[int]) -> Trend:
    count = faults[-1] - faults[0]
    growth = linear_regression(faults, values).slope * count
    return Trend(act, what, whose, values[0], values[-1], growth, count)


def faults(history: History) -> list[str]:
    """All that must not be, in words."""
    found = [history.failure] if history.failure else []
    return found + [f"{trend.act}: {trend}" for trend in trends(history) if trend.grows]
