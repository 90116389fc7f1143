"""The short form of the soak, and what its verdict rests upon."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash.blocks import SECTORS, ZEROES, Blocks
from tests.field.running import environment
from tests.soak import report, runs
from tests.soak.clock import Clock
from tests.soak.deck import acts, planned
from tests.soak.faults import FAULTS
from tests.soak.faults.reconnection import Reconnection
from tests.soak.history import Event, History
from tests.soak.picture import LOOKS
from tests.soak.sample import ROLES, Sample
from tests.soak.verdict import LEAK_BYTES, faults, trends
from vuproc.spec.blk import SECTOR_SIZE

ROOT = Path(__file__).parents[2]
LONG = bool(os.environ.get("VUPROC_LONG"))
BOUND_S = 3600 if LONG else 300
SAMPLE = Sample(
    at_s=0.0,
    connections=0,
    master=1,
    memory=dict.fromkeys(ROLES, 1000),
    fds=dict.fromkeys(ROLES, 10),
    processes=8,
    zombies=0,
    segments=1,
    shm_kib=68,
    files=8,
)


@pytest.mark.timeout(BOUND_S + 60)
def test_everything_happens_once_and_nothing_is_lost(tmp_path: Path) -> None:
    # Drawing takes a second, and so do some of the orders.
    picture = tmp_path / "soak.png"
    arguments = ["--scale", "0.1", "--picture", picture] if LONG else ["--scale", "0.0005"]
    arguments += [] if LONG else ["--seed", "9"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: nothing lost" in done.stdout
    left_out = [line for line in done.stdout.splitlines() if line.startswith("left out")]
    print(*left_out, sep="\n")
    for kind in FAULTS:
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"{kind.name} "))
        count, planned = row.removeprefix(kind.name).split()[:2]
        assert count == planned != "0"
    assert not LONG or picture.read_bytes().startswith(b"\x89PNG")


def test_both_acts_have_all_together_and_the_first_spares_the_master() -> None:
    counts = planned(FAULTS, 0.01)
    first, second = acts(FAULTS, counts, random.Random(1))
    assert all(fault.spares_master for fault in first.faults)
    for kind in FAULTS:
        count = sum(isinstance(each, kind) for act in (first, second) for each in act.faults)
        assert count == counts[kind.name] == max(1, round(kind.full * 0.01))
    again = acts(FAULTS, counts, random.Random(1))
    assert [type(each) for each in again[1].faults] == [type(each) for each in second.faults]
    assert sum(isinstance(each, Reconnection) for each in first.faults) == 50


def test_every_kind_has_its_marker_and_its_colour() -> None:
    markers, colours = zip(*LOOKS, strict=True)
    assert len(set(markers)) == len(set(colours)) == len(LOOKS) >= len(FAULTS)


def test_runs_add_up(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    assert runs.load(file) == []
    one = History(1, planned={"upgrade": 3}, samples={"one master": [SAMPLE]}, requests=10)
    one.events = [Event(1.0, "upgrade", 0.5, 1.0), Event(2.0, "upgrade", 9.0, 9.5, paused_s=9.0)]
    other = History(2, planned={"upgrade": 3}, events=[Event(1.0, "upgrade", 0.25, 0.5)])
    for run in (one, other):
        runs.add(file, run)
    both = runs.load(file)
    assert both == [one, other]
    assert runs.done(both) == {"upgrade": 3}
    # That in which the machine stood still has no stall.
    assert "| upgrade | 3 | 3 | 375.0 | 500 | 2 |" in report.markdown(both)
    assert report.end(both)[0] == []
    other.failure = "lost"
    assert report.end([one, other])[0] == ["run 2 (seed 2): lost"]


def asked(process: subprocess.Popen[str]) -> float:
    """A line to a program, and its answer."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def test_a_pause_of_the_process_is_seen() -> None:
    code = (
        "import sys; from tests.soak.pauses import Pauses\n"
        "with Pauses() as pauses:\n"
        "    for line in sys.stdin: print(pauses.take(), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        asked(process)
        began = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        stopped = time.monotonic()
        threading.Event().wait(0.5)  # so long it stands still
        until = time.monotonic()
        process.send_signal(signal.SIGCONT)
        assert until - stopped - 0.3 < asked(process) <= time.monotonic() - began
        process.communicate(timeout=30)
        assert process.returncode == 0


def grown(each: int = 80, **more: float) -> list[str]:
    """What is said of a hundred samples with so many faults between two, in which these grow by so
    much a sample, or `leaks` by so many bytes a fault.
    """
    leaks = more.get("leaks", 0.0)
    history = History(1)
    history.events = [Event(number / each, "fault", 0.0, 0.0) for number in range(100 * each)]
    history.samples["one master"] = [
        replace(
            SAMPLE,
            at_s=float(number),
            memory=SAMPLE.memory | {"master": 20000 + int(number * each * leaks / 1024)},
            fds=SAMPLE.fds | {"keeper": 10 + int(number * more.get("fds", 0))},
            segments=1 + int(number * more.get("segments", 0)),
        )
        for number in range(100)
    ]
    return faults(history)


def test_what_grows_is_said() -> None:
    assert grown() == []
    assert any("keeper, descriptors" in text for text in grown(fds=1))
    assert any("/dev/shm, segments" in text for text in grown(segments=1))


def test_a_small_object_for_each_fault_is_said() -> None:
    [said] = grown(leaks=sys.getsizeof("") + sys.getsizeof(()))
    assert "master, memory" in said
    [said] = grown(leaks=LEAK_BYTES * 1.1)
    assert "bytes a fault" in said
    assert grown(leaks=LEAK_BYTES * 0.9) == []
    assert grown(leaks=-1000.0) == []


def test_of_few_faults_memory_says_nothing() -> None:
    assert grown(each=4, leaks=256.0) == []  # 75 KiB, and there are pages that hold one object
    assert grown(each=4, leaks=1024.0) != []
    assert grown(each=2, leaks=1e6) == []  # it has not come to rest after so few


def test_a_few_samples_say_nothing_of_growth() -> None:
    history = History(1)
    history.samples["one master"] = [replace(SAMPLE, at_s=float(n)) for n in range(10)]
    assert not list(trends(history))


def sector(blocks: Blocks, sequence: int, number: int) -> bytes:
    return blocks.content(0, sequence)[number * SECTOR_SIZE : (number + 1) * SECTOR_SIZE]


def test_a_write_of_which_nobody_knows_is_settled_by_a_read() -> None:
    blocks = Blocks(8, 4)
    old, new = blocks.next_sequence(), blocks.next_sequence()
    blocks.written(0, old)
    blocks.doubt(0, new)
    torn = b"".join(sector(blocks, new if n < 3 else old, n) for n in range(SECTORS))
    assert blocks.missing(0, memoryview(torn)) is None
    assert blocks.missing(0, memoryview(torn)) is None
    # What was old when it was read must not be new later: that write came from nowhere.
    assert blocks.missing(0, memoryview(blocks.content(0, new))) is not None


def test_a_lost_write_of_zeroes_is_told_from_wrong_data() -> None:
    blocks = Blocks(0, 1)
    number = blocks.next_sequence()
    blocks.written(0, number)
    assert blocks.missing(0, memoryview(bytes(4096))) is not None
    blocks.written(0, ZEROES)
    lost = blocks.missing(0, memoryview(blocks.content(0, number)))
    assert lost is not None and lost[0]
    wrong = blocks.missing(0, memoryview(b"x" * 4096))
    assert wrong is not None and not wrong[0]


CLOCKS = """
import time
print(time.time(), time.monotonic(), flush=True)
input()
print(time.time(), time.monotonic(), flush=True)
import threading
threading.Event().wait(0.01)
time.sleep(0.01)
"""


def test_clocks_jump_in_the_process_alone(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    if clock.without is not None:
        pytest.skip(clock.without)
    with subprocess.Popen(
        [sys.executable, "-c", CLOCKS],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        before = [float(word) for word in process.stdout.readline().split()]
        ours = time.time()
        clock.set_wall(-86400.0)
        clock.advance(3600.0)
        process.stdin.write("\n")
        process.stdin.flush()
        after = [float(word) for word in process.stdout.readline().split()]
        assert after[0] < before[0] - 80000
        assert after[1] > before[1] + 3600
        assert time.time() >= ours
        # Waits are as long as they are said to be, whatever the clocks have said.
        assert process.wait(30) == 0
