"""How sure a median is: between which of the samples that of all there might be lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

IN_TWENTY = 19
"""How often of twenty an interval is to have it."""
LEAST = 12
"""Samples, for an interval to mean anything."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and between what it lies with a probability of 95 %."""

    low: float
    middle: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """In another unit."""
        return Interval(self.low * factor, self.middle * factor, self.high * factor)


def of_median(samples: Sequence[float]) -> Interval:
    """Whatever they are distributed like: how many of n lie below it is binomial.

    ValueError for fewer than `LEAST`.
    """
    count = len(samples)
    if count < LEAST:
        raise ValueError(f"{count} samples have no interval: {LEAST} at least")
    ordered = sorted(samples)
    edge = _edge(count)
    return Interval(ordered[edge], median(ordered), ordered[-1 - edge])


def _edge(count: int) -> int:
    """How many samples on either side need not be in the interval."""
    edge, outside = -1, 0
    while True:
        outside += 2 * math.comb(count, edge + 1)
        if 20 * outside > (20 - IN_TWENTY) * 2**count:
            return edge
        edge += 1
