"""What is counted over masters: sums that never go back, and the events before a death."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from vuproc.fd import Fd, HasFileno
from vuproc.handover.device_counters import DeviceCounters
from vuproc.handover.event_log import LOG_BYTES, SLOT_BYTES, SLOTS, EventLog
from vuproc.handover.fd_store import COUNTERS, FdStore
from vuproc.handover.sd_notify import Notifier

_names = itertools.count()


class Store(Notifier):
    """Keeps as the service manager does, in memory."""

    def __init__(self) -> None:
        super().__init__(None)
        self.kept: dict[str, list[Fd]] = {}
        self.said: list[str] = []

    def store(self, name: str, *fds: HasFileno) -> bool:
        self.said.append(f"store {name}")
        self.kept.setdefault(name, []).extend(Fd(os.dup(fd.fileno())) for fd in fds)
        return True

    def remove(self, name: str) -> bool:
        self.said.append(f"remove {name}")
        for fd in self.kept.pop(name, []):
            fd.close()
        return True

    def left(self) -> dict[str, tuple[Fd, ...]]:
        return {name: tuple(fd.dup() for fd in fds) for name, fds in self.kept.items()}

    def drop(self) -> None:
        for name in list(self.kept):
            self.remove(name)


@contextmanager
def master(store: Store, queues: int = 2) -> Iterator[DeviceCounters]:
    """One master after the other: its counters, with what it was left."""
    fd_store = FdStore(store, store.left())
    name = f"/vuproc.counted-{os.getpid()}-{next(_names)}"
    counters = DeviceCounters(name, queues, fd_store)
    try:
        counters.go_on()
        yield counters
    finally:
        counters.close()
        fd_store.close()


def work(counters: DeviceCounters, queue: int, kicks: int) -> None:
    for _ in range(kicks):
        counters.of_workers[queue].count_kick()


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.drop()


def test_the_first_master_begins_at_nothing(store: Store) -> None:
    with master(store) as counters:
        assert counters.snapshot(0).kicks == 0
        assert counters.of_device().takeovers == 0
        assert list(store.kept) == [f"{COUNTERS}1"]


def test_each_successor_adds_what_all_before_have_counted(store: Store) -> None:
    for generation in range(1, 5):
        with master(store) as counters:
            assert counters.snapshot(0).kicks == 3 * (generation - 1)
            work(counters, 0, 3)
            work(counters, 1, 1)
            assert counters.snapshot(0).kicks == 3 * generation
            assert counters.snapshot(1).kicks == generation
            assert counters.of_device().takeovers == generation - 1
            assert list(store.kept) == [f"{COUNTERS}{generation}"]


def test_the_new_sum_is_stored_before_the_old_one_is_forgotten(store: Store) -> None:
    with master(store):
        pass
    with master(store):
        pass
    assert store.said == ["store counters.1", "store counters.2", "remove counters.1"]


def test_of_two_that_are_stored_the_newer_counts(store: Store) -> None:
    """A master has died between the two steps."""
    with master(store) as counters:
        work(counters, 0, 5)
        older = store.left()
    with master(store) as counters:
        work(counters, 0, 2)
        store.kept[f"{COUNTERS}1"] = list(older.pop(f"{COUNTERS}1"))
    with master(store) as counters:
        assert counters.snapshot(0).kicks == 7
        assert list(store.kept) == [f"{COUNTERS}3"]


def test_the_last_stall_is_that_of_whoever_had_one(store: Store) -> None:
    with master(store) as counters:
        counters.of_workers[0].count_stall(70)
    with master(store) as counters:
        assert counters.snapshot(0).stall_last_ns == 0  # a gauge, and of workers that are no more
        counters.of_workers[0].count_stall(30)
        assert counters.snapshot(0).stall_last_ns == 30
        assert counters.snapshot(0).stall_total_ns == 100


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"vuproc\0\0" + bytes(56)])
def test_what_is_no_segment_costs_a_warning(
    store: Store, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with Fd(os.memfd_create("left", os.MFD_CLOEXEC)) as file:
        os.write(file.fileno(), content)
        store.store(f"{COUNTERS}7", file)
    with master(store) as counters:
        assert counters.snapshot(0).kicks == 0
        assert list(store.kept) == [f"{COUNTERS}8"]
    assert "what was counted before is lost" in caplog.text


def test_a_device_with_more_queues_goes_on_with_those_that_it_had(store: Store) -> None:
    with master(store, queues=1) as counters:
        work(counters, 0, 4)
        counters.events.add({"event": "old"})
    with master(store, queues=3) as counters:
        assert [counters.snapshot(queue).kicks for queue in range(3)] == [4, 0, 0]
        assert counters.events.since(0)[0][0]["event"] == "old"


# The events.


def log() -> EventLog:
    return EventLog(memoryview(bytearray(LOG_BYTES)))


def names(found: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(event["number"], event["event"]) for event in found]


def test_events_come_back_in_order_after_a_number() -> None:
    events = log()
    for name in "abc":
        events.add({"event": name})
    assert names(events.since(0)[0]) == [(1, "a"), (2, "b"), (3, "c")]
    assert names(events.since(2)[0]) == [(3, "c")]
    assert events.since(3) == ([], 0)
    assert events.since(99) == ([], 0)


def test_old_events_make_room_and_are_counted() -> None:
    events = log()
    for number in range(SLOTS + 10):
        events.add({"event": str(number)})
    found, lost = events.since(0)
    assert (len(found), lost) == (SLOTS, 10)
    assert names(found)[0] == (11, "10") and events.last == SLOTS + 10
    assert events.since(SLOTS) == (found[SLOTS - 10 :], 0)


def test_an_event_that_is_too_long_is_shortened() -> None:
    events = log()
    events.add({"time": "now", "event": "long", "text": "x" * 5000, "how": "y" * 5000})
    events.add({"time": "now", "event": "many", **{f"key{i}": "z" * 60 for i in range(60)}})
    long, many = events.since(0)[0]
    assert long["text"].startswith("xxx") and long["text"].endswith("...")
    assert many == {"number": 2, "time": "now", "event": "many"}


def test_what_a_dead_master_had_half_written_is_left_out() -> None:
    memory = bytearray(LOG_BYTES)
    events = EventLog(memoryview(memory))
    for name in "abc":
        events.add({"event": name})
    memory[SLOT_BYTES + 12 : SLOT_BYTES + 20] = b"\xff" * 8
    successor = log()
    successor.add({"event": "own"})
    successor.go_on(memoryview(bytes(memory)))
    assert names(successor.since(0)[0]) == [(1, "a"), (3, "c"), (4, "own")]
