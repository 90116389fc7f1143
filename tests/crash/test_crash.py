"""A worker dies before each store of the ring's code: nothing is lost, doubled, or left waiting.

VUPROC_LONG=1 takes in every pair of deaths in all small scenarios, and random ones by the
thousand: about half an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.crash.build import ROOT, crash_build
from tests.crash.scenario import PACKED, PACKED_SMALL, SCENARIOS, SMALL

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
PAIRS = (*SMALL, *PACKED_SMALL) if LONG else (SMALL[1], PACKED_SMALL[0])
SHARES = 2
"""Processes at a time. One sweep uses one processor: its driver sleeps while its worker runs."""
RUNS = 500 if LONG else 3
pytestmark = pytest.mark.timeout(3600 if LONG else 300)


@pytest.fixture(scope="module")
def build() -> Path:
    return crash_build()


def sweep(build: Path, *commands: list[str]) -> list[dict[str, Any]]:
    """Sweeps at the same time, each in a process of its own whose `vuproc` is the instrumented one;
    their reports.
    """
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(partial(_sweep, build), commands))


def _sweep(build: Path, arguments: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": f"{build}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.sweep", *arguments],
        cwd=build,  # -m puts it first in the path
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    print(report)
    assert report["failures"] == []
    assert report["stores"] > 0
    return report


@pytest.mark.parametrize("name", [scenario.name for scenario in (*SCENARIOS, *PACKED)])
def test_d1_a_death_at_each_store_and_many_at_random(build: Path, name: str) -> None:
    single, chance = sweep(build, ["single", name], ["chance", name, "--runs", str(RUNS)])
    # Without a death, at each store, and beyond the last; some runs may have had fewer stores.
    assert single["runs"] > single["stores"]
    assert single["crashes"] > single["stores"] * 3 / 4
    assert chance["crashes"] > RUNS


@pytest.mark.parametrize("name", [scenario.name for scenario in PAIRS])
def test_d2_a_second_death_at_each_store_of_the_recovery_and_after(build: Path, name: str) -> None:
    halves = [
        ["double", name, "--shares", str(SHARES), "--share", str(share)] for share in range(SHARES)
    ]
    reports = sweep(build, *halves)
    crashes, runs = (sum(report[what] for report in reports) for what in ("crashes", "runs"))
    assert crashes > runs > reports[0]["stores"] ** 2 / 3
