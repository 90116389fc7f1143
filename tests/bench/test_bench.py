"""The bench runs and reports; how fast anything is, no test says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.bench import (
    bars,
    dirty_log,
    flame,
    frames,
    fs,
    give_back,
    layouts,
    limits,
    one_thread,
    published,
    quiet,
    ring,
    scrape,
    start,
    streams,
    timer,
    vsock,
    wake,
)
from tests.bench.contenders import Taken
from tests.bench.findings import Figures, Finding
from tests.bench.findings import Row as FoundRow
from tests.bench.json_text import as_text
from tests.bench.net import __main__ as net
from tests.bench.net import ports
from tests.bench.net.devices import SIZE, Source
from tests.bench.report import Row, Table
from tests.bench.rounds import Effort
from tests.bench.sides import Sample, Waiting
from tests.bench.work import Case
from vuproc.spec.net import HEADER
from vuproc.testing import serve

QUICK = ["--rounds", "1", "--count", "64", "--tries", "1", "--span", "1", "--idle", "0.05"]
CLEAN, DIRTY = quiet.Measured(0.0, 0.0), quiet.Measured(1.0, 0.0)


@pytest.mark.timeout(240)
def test_the_bench_reports_every_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert ring.main([*QUICK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [table["title"] for table in found["tables"]] == [
        *(f"depth 32, {waiting.value}" for waiting in Waiting),
        "depth 1, both sleep",
    ]
    for table in found["tables"]:
        assert len(table["rows"]) in (4, 5)
        assert table["rows"][0]["ratio"]["median"] == 1
        for row in table["rows"]:
            assert row["ns"]["min"] > 0
    assert found["idle"]["processes"] == 8


def test_a_table_compares_each_round_with_its_first_row() -> None:
    base = Row("base", [Sample(10, 10), Sample(20, 10)], [CLEAN, CLEAN])
    other = Row("other", [Sample(30, 10), Sample(30, 40)], [CLEAN, CLEAN])
    table = Table("title", [base, other])
    assert table.ratios(other) == [3.0, 1.5]
    assert table.cpu_ratios(other) == [1.0, 4.0]
    assert table.lines()[1] == "title"


def test_disturbed_rounds_count_only_if_there_are_no_others() -> None:
    base = Row("base", [Sample(10, 10), Sample(20, 10)], [CLEAN, DIRTY])
    other = Row("other", [Sample(30, 10), Sample(30, 40)], [CLEAN, CLEAN])
    assert Table("", [base, other]).ratios(other) == [3.0]
    other.measured[0] = DIRTY
    assert Table("", [base, other]).ratios(other) == [3.0, 1.5]


def test_a_disturbed_sample_is_repeated_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(quiet.Measured, "clean", property(lambda self: False))
    taken: list[int] = []
    quiet.measure(lambda: taken.append(1), [], tries=3)
    assert len(taken) == 3


def test_a_clean_sample_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet.Measured, "clean", property(lambda self: True))
    taken: list[int] = []
    quiet.measure(lambda: taken.append(1), [], tries=3)
    assert len(taken) == 1


def test_a_process_that_ends_in_a_sample_stops_nothing() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:

        def sample() -> int:
            process.kill()
            return process.wait()

        value, _ = quiet.measure(sample, [process.pid], tries=1)
    assert value == -signal.SIGKILL


def test_times_of_all_threads_are_counted() -> None:
    begin, end = threading.Event(), threading.Event()

    def spin() -> None:
        sum(range(200_000))
        begin.set()
        end.wait(20)

    before = quiet.times(os.getpid())
    thread = threading.Thread(target=spin)
    thread.start()
    assert begin.wait(20)
    spent = quiet.times(os.getpid()) - before
    end.set()
    thread.join()
    assert spent.ran > 0


def test_the_wake_bench_measures_each_side() -> None:
    found = wake.measure(50, rounds=2)
    assert list(found) == [wake.ALONE, "vuproc sync", "vuproc python"]
    assert all(len(costs) == 2 for costs in found.values())
    assert all(cost.cpu_us > 0 and cost.sleeps > 0 for costs in found.values() for cost in costs)


def test_the_timer_bench_counts_every_call() -> None:
    late, _ = timer.measure(0.2, tries=1)
    assert len(late) == 20
    assert late == sorted(late)
    # A call comes at its time at the earliest.
    assert late[0] >= 0


def test_the_frames_bench_measures_every_side() -> None:
    found = frames.measure(1, 0.01)
    assert list(found) == list(frames.SIZES)
    for sides in found.values():
        assert {frames.NULL, frames.SINK} < set(sides)
        assert all(rate > 0 for rates in sides.values() for rate in rates)


def test_the_layouts_bench_compares_the_two_in_each_way() -> None:
    found = [*layouts.in_one_thread(2, 600), layouts.over_processes(2, 0.01)]
    assert len(found) == 2 * len(layouts.DEPTHS) + 2 * len(one_thread.CHAINS) + 1
    for one in found:
        assert all(len(times) == 2 and min(times) > 0 for times in one.times.values())
        assert one.ratio() > 0
        assert one.title in one.line()


def test_the_net_bench_judges_every_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each side is measured, or it is said why it is not."""
    monkeypatch.setattr(frames, "main", lambda _arguments: 0)
    code = net.main(["--rounds", "1", "--ms", "20", "--tries", "1", "--only", "tx, split"])
    printed = capsys.readouterr().out
    assert code in (0, 1)
    for name in (ports.NULL, ports.SINK, ports.PEER):
        assert re.search(rf"{re.escape(name)}( +[\d.]+ \(|: no )", printed)
    assert f"64 B frames, tx, split, of {ports.PEER}: " in printed


def test_the_net_bench_says_what_it_cannot_measure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VUPROC_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert net.main(["--rounds", "1", "--tries", "1", "--only", "rx, packed", "--only", "up"]) == 0
    printed = capsys.readouterr().out
    assert f"not measured: {ports.PEER}: no DPDK: there is no dpdk-testpmd" in printed
    assert f"of {ports.PEER}: not measured (no DPDK" in printed
    assert "of passt: not measured (" in printed


def test_a_source_sends_what_the_driver_has_room_for() -> None:
    with serve(Source) as served, served.guest(queues=2, queue_size=256) as guest:
        guest.keep_filled(0, count=200, size=1526)
        for _ in range(500):
            assert len(guest.receive(0)) == HEADER.size + SIZE


def test_the_start_bench_times_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main(["--queues", "1,2", "--starts", "1"]) == 0
    assert re.findall(r"^ *(\d+) queues: \d+ ms", capsys.readouterr().out, re.M) == ["1", "2"]
    assert start.verdict(64, 299.9) == (True, ", the bar is 300: met")
    assert start.verdict(64, 300.0) == (False, ", the bar is 300: missed")


def test_the_scrape_bench_measures_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--rounds", "1", "--requests", "64", "--count", "2000", "--pause", "0.01"]
    assert scrape.main([*quick, "--queues", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["null", "null", "disk", "a"]
    assert "a page of 2 queues" in lines[-1]


def test_the_give_back_bench_measures_every_message() -> None:
    found = give_back.measure(2)
    assert set(found) == {"GET_VRING_BASE", "SET_MEM_TABLE", "DISABLE", "RESET_DEVICE"}
    assert all(took > 0 for took in found.values())


def test_the_dirty_log_bench_compares_runs_with_and_without() -> None:
    found = dirty_log.measure("sync", 4096, rounds=1, count=64, tries=1)
    (plain,), (logged,) = found.plain, found.logged
    assert plain.rate > 0 and logged.cpu_ns > 0
    assert found.ratio(lambda sample: sample.rate) == logged.rate / plain.rate


PERF = """python
\t    7f00 copy
\t    7f01 read
\t  [unknown]

python
\t    7f00 copy
\t    7f01 read

"""


def test_stacks_are_folded_and_drawn_in_proportion() -> None:
    stacks = flame.folded([*PERF.splitlines(), "python ", "\t    7f02 wait;4"])
    assert stacks == {
        ("read", "copy"): 1,
        (flame.UNKNOWN, "read", "copy"): 1,
        ("wait:4",): 1,
    }
    third = pytest.approx(1 / 3)
    assert list(flame.boxes(flame.tree(stacks)))[:4] == [
        (0, 0.0, 1.0, "all"),
        (1, 0.0, third, flame.UNKNOWN),
        (1, third, third, "read"),
        (1, pytest.approx(2 / 3), third, "wait:4"),
    ]


def test_numbers_have_the_digits_of_a_32_bit_float() -> None:
    assert json.loads(as_text({"rate": [1 / 3, 7], "name": "x", "none": None})) == {
        "rate": [0.3333333, 7],
        "name": "x",
        "none": None,
    }


def test_what_is_published_stands_between_the_marks() -> None:
    text = f"before\n{published.BEGIN}\nold\n{published.END}\nafter\n"
    assert published.replaced(text, ["new"]) == (
        f"before\n{published.BEGIN}\n\nnew\n\n{published.END}\nafter\n"
    )
    with pytest.raises(ValueError, match="marks"):
        published.replaced("before", ["new"])
    for path in published.README, published.BENCH:
        assert published.replaced(path.read_text(encoding="utf-8"), ["new"])


def test_the_published_table_has_every_side_that_was_measured() -> None:
    def row(name: str, family: str, rate: float) -> FoundRow:
        return FoundRow(name, family, 1, {0: Taken(rate, 1, 1, 1, 0, True)})

    findings = {
        work: Finding(
            work,
            work,
            "client",
            [
                row(f"limit: {call}", "limit", 2000),
                row("vuproc auto", "vuproc", 3000),
                row("storage-daemon threads", "storage-daemon", 500),
                row("storage-daemon io_uring", "storage-daemon", 1000),
            ],
            {},
        )
        for work, call in published.WORKS.items()
    }
    assert published.table(findings)[2:] == [
        "| `preadv` / `pwritev` in C, no ring | 2 | 1 | 2 | 1 |",
        "| vuproc `blk`, which maps an image in tmpfs | 3 | 1.50 | 3 | 1.50 |",
        "| qemu-storage-daemon, its best | 1 | 0.50 | 1 | 0.50 |",
    ]
    judged = [bars.Verdict("one", 1, 1.2, ""), bars.Verdict("two", 2, 1.2, "")]
    assert published.verdicts([*judged, bars.Verdict("three", 3, None, "no peer")])[2:] == [
        "| one | 1.20 | 1 |",
        "| two | **1.20** | 2 |",
        "| three | not measured: no peer | 3 |",
    ]


def test_the_limits_bench_measures_both_sides_or_says_why_not() -> None:
    found, missing = limits.measure(limits.Limit(iops=2000, burst=100), 1, 0.05)
    assert {"vuproc"} <= set(found)
    assert missing or "qemu-storage-daemon" in found
    assert all(sample.kept > 0 for samples in found.values() for sample in samples)


EFFORT = Effort(rounds=1, seconds=0.0, count=64, tries=1, give_up=0.0)


def figures(found: list[Finding], side: str) -> list[Figures]:
    rows = [finding.row(side) for finding in found]
    assert all(row is not None for row in rows), [finding.missing for finding in found]
    return [row.rate for row in rows if row is not None]


@pytest.mark.timeout(360)
def test_the_fs_bench_measures_our_sides_and_says_what_is_missing() -> None:
    found = fs.measure(fs.CASES[:1], EFFORT)
    for side in (fs.OURS, fs.SLEEPS, fs.PYTHON):
        assert all(rate.median > 0 for rate in figures(found, side))
    for side in (fs.RUST, fs.C):
        # It can be had here or not: then there is a reason.
        assert found[0].row(side) is not None or found[0].missing[side]


@pytest.mark.timeout(360)
def test_the_vsock_bench_measures_both_ways_and_says_what_is_missing() -> None:
    found = vsock.measure([Case(work, depth=1) for work in streams.WORKS], EFFORT)
    assert len(found) == 2
    for side in (vsock.OURS, vsock.SLEEPS):
        assert all(rate.median > 0 for rate in figures(found, side))
    assert all(
        finding.row(vsock.RUST) is not None or finding.missing[vsock.RUST] for finding in found
    )


def test_a_bar_is_met_or_not_or_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = fs.measure(fs.CASES[:1], EFFORT)
    held = [
        bars.Bar("a bar", found[0].name, fs.OURS, (fs.SLEEPS,), 0.0),
        bars.Bar("a bar", found[0].name, fs.OURS, (fs.SLEEPS,), 1e9),
        bars.Bar("a bar", found[0].name, fs.OURS, ("nobody",), 1.0),
    ]
    assert bars.judge(held[:1], found)
    assert ": met (" in capsys.readouterr().out
    assert not bars.judge(held, found)
    said = capsys.readouterr().out.splitlines()[1:]
    words = [line.split(" (")[0].rpartition(": ")[2] for line in said]
    assert words == ["met", "missed", "not measured"]
