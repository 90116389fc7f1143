"""The workers' descriptors in the master's poll set: who is heard where, and who no more."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vuproc.fd import Fd
from vuproc.pool.ending_process import EndingProcess
from vuproc.pool.forkserver import ForkedProcess
from vuproc.pool.pool import WorkerPool
from vuproc.pool.post import Post, Posts
from vuproc.pool.process import WorkerProcess
from vuproc.pool.slot import WorkerSlot
from vuproc.pool.standby import Standby
from vuproc.pool.worker_watch import WorkerWatch


class Sitting(EndingProcess):
    """A worker with a channel, and an eventfd for its pidfd, that does nothing."""

    def __init__(self) -> None:
        self.channel, self.far_end = socket.socketpair()
        super().__init__(ForkedProcess(17, Fd(os.eventfd(0)), cast(Any, None)), Fd(os.eventfd(0)))
        self.ready = True
        self.on_unsettled: Callable[[], None] = lambda: None

    def fileno(self) -> int:
        return self.channel.fileno()

    def ends(self) -> None:
        os.eventfd_write(self.pidfd.fileno(), 1)

    def close(self) -> None:
        self._before_close()
        for end in (self.channel, self.far_end, self._stack, self.pidfd):
            end.close()


class Listening(Standby):
    def __init__(self, told: list[tuple[Post, str]]) -> None:
        super().__init__(cast(Any, None))
        self._told = told

    def heard(self) -> None:
        self._told.append((self, "heard"))

    def ended(self) -> None:
        self._told.append((self, "ended"))


class Place:
    """Two slots, a standby and the watch over them; `told` is what the watch has said of whom."""

    def __init__(self) -> None:
        self.told: list[tuple[Post, str]] = []
        self.posts = Posts()
        self.slots = [WorkerSlot((queue,), cast(Any, None), lambda _: 0) for queue in range(2)]
        self.standby = Listening(self.told)
        for post in (*self.slots, self.standby):
            post.belong_to(self.posts)
        self.selector = selectors.PollSelector()
        pool = SimpleNamespace(
            slots=SimpleNamespace(
                posts=self.posts,
                heard=lambda slot: self.told.append((slot, "heard")),
                ended=lambda slot: self.told.append((slot, "ended")),
                stopped=lambda slot: self.told.append((slot, "stopped")),
            )
        )
        self.watch = WorkerWatch(self.selector, cast(WorkerPool, pool))
        self.workers: list[Sitting] = []

    def sit(self, post: Post) -> Sitting:
        worker = Sitting()
        self.workers.append(worker)
        post.worker = cast(WorkerProcess, worker)
        self.watch.update()
        return worker

    def turn(self) -> list[tuple[Post, str]]:
        """What one turn of the loop says."""
        self.told.clear()
        for key, _ in self.selector.select(0):
            key.data()
        return sorted(self.told, key=lambda each: each[1])

    def close(self) -> None:
        self.watch.close()
        for worker in self.workers:
            if not worker.closed:
                worker.close()
        self.selector.close()


@pytest.fixture
def place() -> Iterator[Place]:
    found = Place()
    yield found
    found.close()


def test_a_worker_is_heard_and_ends_at_its_post(place: Place) -> None:
    first, waiting = place.sit(place.slots[0]), place.sit(place.standby)
    assert place.turn() == []
    first.far_end.send(b"x")
    assert place.turn() == [(place.slots[0], "heard")]
    waiting.ends()
    assert place.turn() == [(place.standby, "ended"), (place.slots[0], "heard")]


def test_a_worker_that_goes_elsewhere_is_heard_there(place: Place) -> None:
    worker = place.sit(place.standby)
    place.standby.worker, place.slots[1].worker = None, cast(WorkerProcess, worker)
    place.watch.update()
    worker.far_end.send(b"x")
    assert place.turn() == [(place.slots[1], "heard")]
    place.slots[1].worker = None
    place.watch.update()
    assert place.turn() == []


def test_a_dead_worker_whose_pidfd_others_have_is_not_reported_any_more(place: Place) -> None:
    """Not under its own number, nor under that of the one who got it."""
    before = place.sit(place.slots[0])
    with before.pidfd.dup(), Fd(os.dup(before.fileno())):
        before.ends()
        before.far_end.send(b"x")
        place.slots[0].worker = None
        numbers = {before.fileno(), before.pidfd.fileno()}
        before.close()
        after = place.sit(place.slots[0])
        assert {after.fileno(), after.pidfd.fileno()} & numbers
        assert place.turn() == []
        assert place.selector.select(0) == []
        after.far_end.send(b"x")
        assert place.turn() == [(place.slots[0], "heard")]


def hangs_up(worker: Sitting) -> None:
    """Its listener does: one end of a pair, which says so as a listener would."""
    ours, theirs = socket.socketpair()
    worker.listener = Fd(ours.detach())
    worker.on_listener()
    theirs.close()


def test_one_that_runs_no_more_is_reported_once_and_its_end_too(place: Place) -> None:
    worker = place.sit(place.slots[0])
    hangs_up(worker)
    assert place.turn() == [(place.slots[0], "stopped")]
    assert place.turn() == []
    worker.ends()
    assert place.turn() == [(place.slots[0], "ended")]
    worker.listener.close()  # type: ignore[union-attr]


def test_the_end_of_one_that_has_a_successor_is_logged_and_not_reported(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, logged = place.slots[0], []
    monkeypatch.setattr(slot, "log_exit", lambda: logged.append(slot.exit_unlogged))
    before = place.sit(slot)
    slot._exit_unlogged = cast(WorkerProcess, before)
    slot.worker = None
    after = place.sit(slot)
    before.far_end.send(b"x")
    assert place.turn() == [] and logged == []
    before.ends()
    after.far_end.send(b"x")
    assert place.turn() == [(slot, "heard")]
    assert logged == [cast(WorkerProcess, before)]


def test_one_that_is_replaced_in_the_same_turn_is_not_reported(place: Place) -> None:
    first, second = place.sit(place.slots[0]), place.sit(place.slots[1])
    for worker in (first, second):
        worker.far_end.send(b"x")

    def replace(slot: WorkerSlot) -> None:
        place.told.append((slot, "heard"))
        other = place.slots[1 - slot.queues[0]]
        if other.worker is not None:
            gone, other.worker = other.worker, None
            gone.close()

    place.watch._slots.heard = replace  # type: ignore[method-assign]
    assert len(place.turn()) == 1


def test_only_posts_that_have_changed_are_looked_at(place: Place) -> None:
    place.sit(place.slots[0])
    assert place.posts.moved == set()
    place.sit(place.slots[1])
    assert place.posts.moved == set()
    place.slots[0].worker = None
    assert place.posts.moved == {place.slots[0]}


def test_a_post_is_unsettled_by_its_own_worker_alone(place: Place) -> None:
    worker = place.sit(place.standby)
    place.standby.worker, place.slots[0].worker = None, cast(WorkerProcess, worker)
    place.posts.unsettled.clear()
    worker.on_unsettled()
    assert place.posts.unsettled == {place.slots[0]}
    place.slots[0].worker = None
    place.posts.unsettled.clear()
    worker.on_unsettled()
    assert place.posts.unsettled == set()
