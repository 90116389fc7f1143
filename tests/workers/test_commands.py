"""Commands that a worker has to put off, without a ring: what waits, and in which order."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.pool.scripted import Scripted, ScriptedOptions
from vuproc.vhost_user.effects import StopRing
from vuproc.workers import command_queue
from vuproc.workers.control import (
    Command,
    Done,
    Failed,
    MasterChannel,
    SetLogLevel,
    master_end,
    worker_end,
)
from vuproc.workers.log import WorkerLog
from vuproc.workers.loop import Worker
from vuproc.workers.poller import Watcher


class Busy:
    """A queue with a request in the device's hands."""

    in_flight = 1
    started = True
    kick = None
    completions = -1
    ready = polling = active = quiet = False
    due = None
    rings = 0

    def __init__(self, base: int) -> None:
        self.index = 0
        self.base = base
        self.kept: bool | None = None
        """Whether its record was, at its end."""

    def stop(self, *, keep: bool = False) -> tuple[int, int]:
        assert not self.in_flight
        self.kept = keep
        return self.base, 0

    def drop(self, *, keep: bool = False) -> None:
        self.kept = keep

    def submit(self) -> bool:
        return True

    def publish(self) -> int:
        return 0

    def unwatch_in(self, _watcher: Watcher) -> None: ...

    def readmit(self) -> None: ...

    def hold(self) -> None: ...


@pytest.fixture
def pair() -> Iterator[tuple[MasterChannel, Worker]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    master, channel = master_end(ours), worker_end(theirs)
    worker = Worker(channel, Scripted(ScriptedOptions()), 8, WorkerLog(channel))
    yield master, worker
    worker.close()
    master.close()
    channel.close()


def answers(master: MasterChannel) -> list[tuple[int, int]]:
    """Serial and value of each that has come."""
    found = []
    while (received := master.receive()) is not None:
        report, _ = received
        assert isinstance(report, Done | Failed), report
        found.append((report.serial, report.value if isinstance(report, Done) else -1))
    return found


def test_stops_of_two_queues_wait_for_both(pair: tuple[MasterChannel, Worker]) -> None:
    # As the successor of a master stops the rings of the last one's workers: all at once.
    master, worker = pair
    first, second = Busy(7), Busy(9)
    worker._queues.update({0: first, 1: second})  # type: ignore[dict-item]
    master.send(Command(1, StopRing(0)))
    master.send(Command(2, StopRing(1)))
    for _ in range(2):
        worker._watcher.poll(0.0)
    assert answers(master) == []
    second.in_flight = 0
    worker._orders.settle()
    assert answers(master) == []  # in their order
    first.in_flight = 0
    worker._orders.settle()
    assert answers(master) == [(1, 7), (2, 9)]


def test_commands_of_one_datagram_are_carried_out_however_slow_each_is(
    pair: tuple[MasterChannel, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No poll tells of those behind the first, and the worker must not sleep on them."""
    monkeypatch.setattr(command_queue, "TOGETHER_S", -1.0)
    master, worker = pair
    master.send(*(Command(serial, SetLogLevel(20)) for serial in range(1, 5)))
    worker._watcher.poll(0.0)
    for serial in range(1, 4):
        assert answers(master) == [(serial, 0)]
        assert worker._patience() == 0.0
        worker._turn()
    assert answers(master) == [(4, 0)]
    assert worker._patience() is None


def test_what_needs_no_idle_ring_is_answered_at_once(pair: tuple[MasterChannel, Worker]) -> None:
    master, worker = pair
    worker._queues.update({0: Busy(7)})  # type: ignore[dict-item]
    master.send(Command(5, SetLogLevel(20)))
    worker._watcher.poll(0.0)
    assert answers(master) == [(5, 0)]


def test_a_master_that_goes_leaves_the_records_as_they_are(
    pair: tuple[MasterChannel, Worker],
) -> None:
    """Nobody has told the front-end where the rings are: a record that is over would be a loss."""
    master, worker = pair
    queue = Busy(7)
    worker._queues.update({0: queue})  # type: ignore[dict-item]
    master.close()
    assert worker.run() == 0
    assert queue.kept is True


@pytest.mark.parametrize("keeps", [False, True])
def test_a_stop_ends_the_record_if_its_base_is_told(
    pair: tuple[MasterChannel, Worker], keeps: bool
) -> None:
    master, worker = pair
    queue = Busy(7)
    queue.in_flight = 0
    worker._queues.update({0: queue})  # type: ignore[dict-item]
    master.send(Command(1, StopRing(0, keeps_record=keeps)))
    worker._watcher.poll(0.0)
    worker._orders.settle()
    assert answers(master) == [(1, 7)] and queue.kept is keeps
