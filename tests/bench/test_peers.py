"""The comparison of vuproc with its peers runs and reports; how fast anything is, no test says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import bars, scale, scale_point
from tests.bench.backends import Running
from tests.bench.clients import fio, percentile_ns
from tests.bench.clients.fio import Fio, outcome
from tests.bench.contenders import Taken
from tests.bench.findings import Finding, Row
from tests.bench.work import WORKS, Case

FIO = """#!/bin/sh
if [ "$1" = --enghelp ]; then echo "Available IO engines: psync libblkio"; exit; fi
for word; do case $word in --io_size=*) size=${word#*=};; esac; done
echo "fio: a warning"
found='"total_ios": '$((size / 65536))', "iops": 14.0, "clat_ns": {}'
echo '{"jobs": [{"error": 0, "write": {'"$found"'}}]}'
"""

QUICK = ["--rounds", "1", "--count", "32", "--tries", "1", "--span", "1", "--depths", "4"]


@dataclass(frozen=True)
class Found:
    """The one comparison that the command made."""

    rows: dict[str, dict[str, object]]
    missing: dict[str, str]


def run(tmp_path: Path, *arguments: str) -> Found:
    file = tmp_path / "found.json"
    images = ["--tmpfs", str(tmp_path), "--directory", str(tmp_path)]
    assert bench.main([*QUICK, *images, "--json", str(file), *arguments]) == 0
    (comparison,) = json.loads(file.read_text())["comparisons"]
    return Found({row["name"]: row for row in comparison["rows"]}, comparison["missing"])


def test_the_built_in_driver_drives_every_engine(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        *("--clients", "builtin", "--engine", "python,verbs", "--queues", "2"),
        *("--peers", "none", "--limits", "call"),
    )
    assert not found.missing
    assert set(found.rows) == {"limit: preadv", "vuproc python", "vuproc verbs"}
    for row in found.rows.values():
        assert row["rounds"] == 1


def test_the_first_client_drives_vuproc_and_the_limits_are_measured(tmp_path: Path) -> None:
    found = run(tmp_path, "--engine", "python", "--peers", "none")
    assert not found.missing
    assert set(found.rows) == {"limit: preadv", "limit: memcpy", "vuproc python"}


@pytest.mark.parametrize("peer", ["storage-daemon threads-nopoll", "nbdkit file"])
def test_a_peer_is_measured_or_said_to_be_missing(tmp_path: Path, peer: str) -> None:
    arguments = ["--clients", "builtin", "--engine", "verbs", "--limits", "call"]
    found = run(tmp_path, *arguments, "--works", "randwrite", "--peers", peer)
    assert "vuproc verbs" in found.rows
    assert peer in found.rows or found.missing[peer].startswith("there is no ")


def test_a_null_device_moves_no_data(tmp_path: Path) -> None:
    arguments = ["--clients", "builtin", "--stores", "null", "--peers", "none"]
    assert set(run(tmp_path, *arguments).rows) == {"vuproc verbs"}


def test_percentiles_are_those_of_the_histogram() -> None:
    latency = [0] * 496
    latency[3], latency[40] = 98, 2
    assert percentile_ns(latency, 50) == 4
    assert percentile_ns(latency, 99) > 100
    assert percentile_ns([0] * 496, 50) == 0


def test_the_report_of_fio_is_understood() -> None:
    percentile = {"50.000000": 1000, "99.000000": 3000}
    read = {"total_ios": 500, "iops": 1000.0, "runtime": 500, "clat_ns": {"percentile": percentile}}
    found = outcome({"error": 0, "read": read}, "read")
    assert (found.completed, found.seconds, found.p50_ns, found.p99_ns) == (500, 0.5, 1000, 3000)


def test_fio_is_run_where_it_has_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "fio"
    stub.write_text(FIO)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    fio.program.cache_clear()
    try:
        with Fio().connect(Running(tmp_path / "socket", list), Case(WORKS["seqwrite"])) as runs:
            found = runs.run(7)
    finally:
        fio.program.cache_clear()
    assert (found.completed, found.failed, found.seconds) == (7, 0, 0.5)


def taken(rate: float, clean: bool = True) -> Taken:
    return Taken(rate, 1.0, 2.0, 3.0, 0.0, clean)


def finding(ours: list[Taken], theirs: list[Taken]) -> Finding:
    rows = [
        Row("vuproc sync", "vuproc", 1, dict(enumerate(ours))),
        Row("rust preadv", "rust preadv", 1, dict(enumerate(theirs))),
    ]
    return Finding(bars.READ.name, "title", "client", rows, {})


def test_a_ratio_compares_undisturbed_samples_of_the_same_round() -> None:
    found = finding([taken(2), taken(9, False)], [taken(1), taken(1)])
    ratio = found.ratio(*found.rows)
    assert ratio is not None
    assert (ratio[0].median, ratio[1]) == (2.0, True)


def test_a_bar_says_what_it_was_measured_against() -> None:
    found = finding([taken(3)], [taken(2)])
    lines = [verdict.line() for verdict in bars.verdicts({found.name: found})]
    (line,) = [line for line in lines if line.startswith("random read by calls, the peer in Rust")]
    assert "1.50, the bar is 1.2: met" in line
    assert "not measured (no vuproc auto)" in lines[0]


def test_a_bar_may_be_about_cpu_time() -> None:
    ours, theirs = taken(1), replace(taken(2), cpu_ns=4.5)
    found = replace(
        finding([ours], [theirs]),
        name=bars.ONE_SLEEPS.name,
        rows=[
            Row("vuproc auto poll=off", "vuproc", 1, {0: ours}),
            Row("rust preadv", "rust preadv", 1, {0: theirs}),
        ],
    )
    lines = [verdict.line() for verdict in bars.verdicts({found.name: found})]
    (line,) = [line for line in lines if "requests a CPU second" in line]
    assert "1.50, the bar is 1: met" in line


def test_a_point_of_the_scale_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--axes", "queues", "--most", "1", "--requests", "64", "--idle", "0.01"]
    assert scale.main(arguments) in (0, 1)
    assert "largest worker" in capsys.readouterr().out


def test_more_regions_than_one_message_holds_are_added() -> None:
    shape = scale_point.Shape(regions=66)
    point = scale_point.measure(shape, requests=64, idle_s=0.01)
    assert point.table_ms > 0
    assert point.region_ms > 0


def test_a_flame_graph_of_every_side_or_the_reason_why_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "flames"
    arguments = ["--clients", "builtin", "--engine", "python", "--peers", "none"]
    images = ["--tmpfs", str(tmp_path), "--directory", str(tmp_path), "--perf", str(folder)]
    if shutil.which("perf") is not None:
        # By itself, for what draws keeps its fonts open.
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench", *QUICK, *images, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said = done.stderr
        assert done.returncode == 0, said
        for side in "limit: preadv", "limit: memcpy", "vuproc python":
            stem = side.replace(": ", "-").replace(" ", "-")
            assert list(folder.glob(f"*{stem}.svg")) or f"no flame graph of {side}" in said
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert bench.main([*QUICK, *images, *arguments]) == 1
    assert "there is no perf here" in capsys.readouterr().err
