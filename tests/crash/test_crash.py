"""A worker dies before each store of the ring's code: nothing is lost, doubled, or left waiting.

VUPROC_CRASH_LONG=1 takes in every pair of deaths in all small scenarios, and random ones by the
thousand: about half an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.crash.build import ROOT, crash_build
from tests.crash.scenario import SCENARIOS, SMALL

LONG = os.environ.get("VUPROC_CRASH_LONG", "") not in ("", "0")
PAIRS = SMALL if LONG else SMALL[:1]
pytestmark = pytest.mark.timeout(1800 if LONG else 300)


@pytest.fixture(scope="module")
def build() -> Path:
    return crash_build()


def sweep(build: Path, *arguments: str) -> dict[str, Any]:
    """One scenario in a process of its own, whose `vuproc` is the instrumented one."""
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


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
def test_d1_a_death_at_each_store(build: Path, name: str) -> None:
    report = sweep(build, "single", name)
    # Without a death, at each store, and beyond the last.
    assert report["runs"] == report["crashes"] + 2 >= report["stores"]


@pytest.mark.parametrize("name", [scenario.name for scenario in PAIRS])
def test_d2_a_second_death_at_each_store_of_the_recovery_and_after(build: Path, name: str) -> None:
    report = sweep(build, "double", name)
    assert report["crashes"] > report["runs"] > report["stores"] ** 2 / 3


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
def test_many_deaths_at_random(build: Path, name: str) -> None:
    runs = 500 if LONG else 3
    report = sweep(build, "chance", name, "--runs", str(runs))
    assert report["crashes"] > runs
