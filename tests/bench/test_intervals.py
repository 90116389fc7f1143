"""The interval of a median covers it as often as it says."""

from __future__ import annotations

import math

import pytest

from tests.bench.intervals import LEAST, of_median


@pytest.mark.parametrize("count", [LEAST, 13, 22, 60, 401])
def test_it_covers_the_median_of_all_nineteen_times_of_twenty(count: int) -> None:
    found = of_median(range(count, 0, -1))
    assert found.middle == (count + 1) / 2
    low, high = round(found.low), round(found.high)
    assert low + high == count + 1
    # So many of `count` samples lie below the median of all, with these chances.
    covers = sum(math.comb(count, below) for below in range(low, high)) / 2**count
    assert 0.95 <= covers < 0.985


def test_of_a_few_samples_nothing_is_said() -> None:
    with pytest.raises(ValueError):
        of_median(range(LEAST - 1))
