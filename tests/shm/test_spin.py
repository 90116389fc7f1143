"""The window before a sleep: what it learns, whom it gives way to, and the options that say so."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vuproc.ops.admin import Request, ask
from vuproc.options import Options
from vuproc.shm.counters import QueueCounters, block_bytes
from vuproc.shm.spin import (
    CHECK_NS,
    FIRST_NS,
    FIRST_SKIPPED,
    LAST_SKIPPED,
    LONGEST_NS,
    MOST_TAKEN,
    MOST_VAIN,
    REFRAIN_NS,
    SAME_NS,
    Spin,
)
from vuproc.testing.plugin import ServeDevice

SHORT, LONG = SAME_NS + 1, 10 * LONGEST_NS
BEGIN = 1 << 40
"""ns: when it is looked at who else wants the CPUs for the first time."""


def auto() -> Spin:
    return Spin("auto", None, 2)


def test_auto_begins_without_and_grows_with_short_sleeps() -> None:
    window = auto()
    assert window.window_now(BEGIN) == 0
    seen = []
    for _ in range(5):
        window.slept(SHORT, 0)
        seen.append(window.window_now(BEGIN))
    # Past the longest the next sleep would not be short.
    assert seen[:3] == [FIRST_NS, 2 * FIRST_NS, 4 * FIRST_NS]
    assert max(seen) <= LONGEST_NS


def test_auto_gives_up_after_a_few_long_sleeps() -> None:
    window = auto()
    for _ in range(3):
        window.slept(SHORT, 0)
    for sleep in (LONG, LONG, (1 << 64) - 1):
        window.slept(sleep, 0)
    assert window.window_now(BEGIN) == 0


def test_auto_does_not_look_while_the_driver_runs_on_its_cpu() -> None:
    window = auto()
    for _ in range(3):
        window.slept(SAME_NS, 0)
    assert window.window_now(BEGIN) == 0
    for _ in range(3):
        window.slept(SHORT, 0)
    assert window.window_now(BEGIN) > 0
    for _ in range(3):
        window.slept(SAME_NS, 0)
    assert window.window_now(BEGIN) == 0


def looks_in(window: Spin, sleeps: int, hits: Callable[[], int]) -> int:
    """How many of so many short sleeps a look comes before."""
    looks = 0
    for _ in range(sleeps):
        looks += window.window_now(BEGIN) > 0
        window.slept(SHORT, hits())
    return looks


def test_auto_looks_rarely_if_it_never_finds_anything() -> None:
    window = auto()
    # One sleep that it begins after, and then each look, before it gives up for so many.
    assert looks_in(window, 1 + MOST_VAIN, lambda: 0) == MOST_VAIN
    assert looks_in(window, FIRST_SKIPPED, lambda: 0) == 0
    assert looks_in(window, 1 + MOST_VAIN, lambda: 0) == MOST_VAIN
    assert looks_in(window, 2 * FIRST_SKIPPED, lambda: 0) == 0
    sleeps = 20 * LAST_SKIPPED
    assert 0 < looks_in(window, sleeps, lambda: 0) < sleeps // 40


def test_auto_goes_on_to_look_if_it_finds_something_at_times() -> None:
    window = auto()
    found = itertools.count()
    seldom = lambda: next(found) // (MOST_VAIN // 2)  # noqa: E731
    sleeps = 10 * MOST_VAIN
    assert looks_in(window, sleeps, seldom) == sleeps - 1


def test_what_is_found_after_a_while_in_vain_makes_pauses_short_again() -> None:
    window = auto()
    looks_in(window, 1 + MOST_VAIN + FIRST_SKIPPED, lambda: 0)
    assert looks_in(window, 2, lambda: 1) == 1
    assert looks_in(window, MOST_VAIN - 1, lambda: 1) == MOST_VAIN - 1
    assert looks_in(window, FIRST_SKIPPED, lambda: 1) == 0
    assert looks_in(window, 2, lambda: 1) == 1


def test_sleeps_without_a_look_before_them_tell_nothing_of_looks() -> None:
    window = auto()
    window.look(BEGIN, 0)
    window.slept(SHORT, 0)
    window.look(BEGIN + CHECK_NS, MOST_TAKEN + 1)
    for _ in range(2 * MOST_VAIN):
        assert window.window_now(BEGIN + CHECK_NS) == 0
        window.slept(SHORT, 0)
    later = BEGIN + CHECK_NS + REFRAIN_NS
    window.look(later, MOST_TAKEN + 1)
    assert window.window_now(later) > 0


def test_off_and_a_number_learn_nothing() -> None:
    off, fixed = Spin("off", None, 2), Spin(30, None, 2)
    for sleep in (SHORT, LONG, LONG):
        off.slept(sleep, 0)
        fixed.slept(sleep, 0)
    assert (off.window_now(BEGIN), fixed.window_now(BEGIN)) == (0, 30_000)


def test_no_window_while_more_workers_are_awake_than_there_are_cpus() -> None:
    memory = bytearray(block_bytes(3))
    queues = [QueueCounters(memory, i) for i in range(3)]
    for queue in queues:
        queue.set_awake(True)
    window = Spin(30, queues[0], 2)
    assert window.window_now(BEGIN) == 0
    queues[1].set_awake(False)
    assert window.window_now(BEGIN) == 0  # not looked at again yet
    assert window.window_now(BEGIN + CHECK_NS) == 30_000
    for queue in queues:
        queue.release()


def test_no_window_for_a_while_after_others_took_the_cpu() -> None:
    window = Spin(30, None, 2)
    window.look(BEGIN, 7)
    assert window.window_now(BEGIN) == 30_000
    window.look(BEGIN + CHECK_NS, 7 + MOST_TAKEN)
    assert window.window_now(BEGIN + CHECK_NS) == 30_000
    now = BEGIN + 2 * CHECK_NS
    window.look(now, 7 + 2 * MOST_TAKEN + 1)
    assert window.window_now(now) == 0
    window.look(now + REFRAIN_NS // 2, 7 + 2 * MOST_TAKEN + 1)
    assert window.window_now(now + REFRAIN_NS // 2) == 0
    window.look(now + REFRAIN_NS, 7 + 2 * MOST_TAKEN + 1)
    assert window.window_now(now + REFRAIN_NS) == 30_000


def test_workers_awake_are_counted_over_all_queues() -> None:
    memory = bytearray(block_bytes(3))
    queues = [QueueCounters(memory, i) for i in range(3)]
    queues[0].set_awake(True)
    queues[2].set_awake(True)
    assert queues[1].count_awake() == 2
    queues[0].set_awake(False)
    assert queues[1].count_awake() == 1
    for queue in queues:
        queue.release()


def test_absent_cpu_is_a_problem_of_the_device_file() -> None:
    there = max(os.sched_getaffinity(0))
    assert list(Options(cpus=(there,)).problems()) == []
    ((field, message),) = Options(cpus=(there, 100_000)).problems()
    assert (field, message) == ("cpus", "no such CPU here: 100000")


@pytest.mark.parametrize("engine", ["sync", "python"])
@pytest.mark.parametrize("poll", ["auto", "off", 2000])
def test_each_way_to_wait_serves(
    vuproc_device: ServeDevice, tmp_path: Path, engine: str, poll: Any
) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    there = min(os.sched_getaffinity(0))
    served = vuproc_device(
        {"type": "blk", "image": str(image), "engine": engine, "poll": poll, "cpus": [there]}
    )
    header = (1).to_bytes(4, "little") + bytes(12)
    with served.guest() as guest:
        for number in range(100):
            done = guest.do(0, [header, bytes([number]) * 512], [1])
            assert done.data[-1] == b"\0"
        (queue,) = ask(served.socket, Request("status"))["queues"]
        assert os.sched_getaffinity(queue["pid"]) == {there}
    assert image.read_bytes()[:512] == bytes([99]) * 512
