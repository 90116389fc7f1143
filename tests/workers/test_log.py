"""What a worker says to its master: never in the way of its answers, and no failure unheard."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.pool.scripted import Scripted, ScriptedOptions
from vuproc import log_limit, texts
from vuproc.workers import control
from vuproc.workers.control import (
    Done,
    Logged,
    MasterChannel,
    WorkerChannel,
    master_end,
    worker_end,
)
from vuproc.workers.log import LINES_MOST, MASTER_TAKES, PLACES_MOST, WorkerLog
from vuproc.workers.loop import Worker

BOUND_S = 20.0
Ends = tuple[MasterChannel, WorkerChannel, WorkerLog]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        channel = worker_end(theirs)
        yield master_end(ours), channel, WorkerLog(channel)


def heard(master: MasterChannel) -> list[str]:
    """The texts that have come."""
    found = []
    while (received := master.receive()) is not None:
        assert isinstance(received[0], Logged), received
        found.append(received[0].text)
    return found


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_c7_the_first_failure_of_a_kind_is_said_in_full_and_the_others_are_counted(
    ends: Ends,
) -> None:
    master, _, log = ends
    for number in range(15):
        log.failed("Disk.handle", raised(LookupError("part")), f"queue 0, head {number}")
    for _ in range(3):
        log.failed("Disk.handle", raised(ValueError("whole")), "queue 0, head 1")
    first, other = heard(master)
    lines = first.split("\n")
    assert lines[0] == "Disk.handle: queue 0, head 0: LookupError: part"
    assert (lines[1], lines[-1]) == ("Traceback (most recent call last):", "LookupError: part")
    assert other.startswith("Disk.handle: queue 0, head 1: ValueError: whole\nTraceback")
    log.tend(at_last=True)
    assert heard(master) == [
        "14 more like this in 1 s: Disk.handle: queue 0, head 1: LookupError: part",
        "2 more like this in 1 s: Disk.handle: queue 0, head 1: ValueError: whole",
    ]


def test_c7_failures_of_another_line_are_another_kind(ends: Ends) -> None:
    master, _, log = ends
    log.failed("Disk.handle", raised(LookupError("here")), file=__file__)
    for _ in range(2):
        try:
            raise LookupError("there")
        except LookupError as error:
            log.failed("Disk.handle", error, file=__file__)
    assert [text.partition("\n")[0] for text in heard(master)] == [
        "Disk.handle: LookupError: here",
        "Disk.handle: LookupError: there",
    ]


def test_c7_a_device_that_talks_hides_no_failure(ends: Ends) -> None:
    master, _, log = ends
    for number in range(10 * LINES_MOST):
        log.note(number, logging.INFO, lambda: "line")
    assert len(heard(master)) == min(PLACES_MOST, LINES_MOST)
    log.failed("Disk.handle", LookupError("part"))
    assert heard(master) == ["Disk.handle: LookupError: part"]


def test_c7_a_worker_at_its_bounds_is_within_the_masters() -> None:
    # Two periods of the worker's may fall into one of the master's.
    assert 2 * (LINES_MOST + PLACES_MOST + 2 * (PLACES_MOST + 1)) <= MASTER_TAKES


def test_a6_a_master_that_does_not_read_costs_lines_and_leaves_room_for_answers(
    ends: Ends,
) -> None:
    master, channel, log = ends
    error = LookupError(("x" * texts.LINE_BYTES + "\n") * 100)
    for number in range(PLACES_MOST):
        log.note(number, logging.INFO, lambda: str(error))
        log.failed(f"hook {number}", error)
    log.tend(at_last=True)
    for serial in range(64):
        channel.send(Done(serial), timeout=0.0)
    received = []
    while (report := master.receive()) is not None:
        received.append(report[0])
    shown = sum(isinstance(report, Logged) for report in received)
    assert 0 < shown < 2 * PLACES_MOST
    log.tend(at_last=True)
    counts = heard(master)
    assert sum(int(text.partition(" more")[0]) for text in counts) == 2 * PLACES_MOST - shown


def test_c7_the_next_count_is_looked_for_while_no_thread_of_the_device_adds_one(
    ends: Ends,
) -> None:
    _, _, log = ends
    for _ in range(2):
        log.failed("hook", LookupError("part"))
    within, gate, found = threading.Event(), threading.Event(), threading.Event()

    def text() -> str:
        within.set()
        gate.wait(BOUND_S)
        return "a line"

    def look() -> None:
        assert log.due() is not None
        found.set()

    threads = [threading.Thread(target=log.note, args=("a place", logging.INFO, text))]
    threads.append(threading.Thread(target=look))
    threads[0].start()
    try:
        assert within.wait(BOUND_S)
        threads[1].start()
        assert not found.wait(0.2)
    finally:
        gate.set()
        for thread in threads:
            thread.join(BOUND_S)
    assert found.is_set()


def test_c7_an_idle_worker_says_its_counts_by_itself_and_then_sleeps(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_limit, "PERIOD_S", 0.1)
    master, channel, log = ends
    worker = Worker(channel, Scripted(ScriptedOptions()), 8, log)
    for _ in range(3):
        log.failed("Scripted.handle", LookupError("part"))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        said: list[str] = []
        while len(said) < 2:
            assert master.wait(BOUND_S), "it says no more"
            said += heard(master)
        assert said[1] == "2 more like this in 1 s: Scripted.handle: LookupError: part"
        assert log.due() is None
    finally:
        master.send(control.Command(1, control.Exit()))
        thread.join(BOUND_S)
        worker.close()
    assert not thread.is_alive()
