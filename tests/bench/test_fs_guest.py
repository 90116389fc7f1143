"""The parts of the comparison in a Linux guest that need no guest."""

from __future__ import annotations

from tests.bench import fs_guest
from tests.bench.fs_guest import Reads


def test_ratios_are_of_the_same_rounds() -> None:
    found = {
        "random": {
            "ours": {0: Reads(2000.0, 5.0), 1: Reads(9000.0, 1.0)},
            "theirs": {0: Reads(1000.0, 10.0)},
            "nobody": {},
        }
    }
    said = fs_guest.lines(found, {"nobody": "is not here"}, "theirs")
    assert any("2.00 of the rate, 0.50 of the CPU time of theirs" in line for line in said)
    assert said[-1] == "not measured: nobody: is not here"
    assert sum("thousand/s" in line for line in said) == 2
