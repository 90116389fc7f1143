"""The watchdog, with a clock of its own: how often it looks, who is stuck, and who has only stood
still.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vuproc.pool import watchdog
from vuproc.pool.watchdog import IDLE_LOOKS, LOOKS, Watchdog

TIMEOUT_S = 8.0
PID = 77


class Words:
    """The counters of one queue, as the watchdog reads them."""

    def __init__(self) -> None:
        self.busy = self.heartbeat = self.in_hooks = self.handed = 0

    def work(self) -> tuple[int, int, int]:
        return self.busy, self.heartbeat, self.in_hooks

    def handed_since(self, _looks: int) -> int:
        return self.handed

    def advance(self) -> None:
        pass


class Slots(list[Any]):
    """One worker with one queue; `died`: when, and why."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(
            [SimpleNamespace(worker=SimpleNamespace(pid=PID, ready=False), queues=[0])]
        )
        self._scene = scene

    def died(self, _slot: object, cause: str) -> None:
        self._scene.died.append((self._scene.now, cause))


class Scene:
    """A watchdog over one worker, and a clock that stands until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.words = Words()
        self.stopped = False
        self.died: list[tuple[float, str]] = []
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(watchdog, "_is_stopped", lambda _pid: self.stopped)
        pool: Any = SimpleNamespace(history=SimpleNamespace(in_postcopy=False), slots=Slots(self))
        counters: Any = [self.words]
        self.watchdog = Watchdog(TIMEOUT_S, TIMEOUT_S, pool, counters)

    def look(self) -> float:
        """Let the next look come; seconds until the one after."""
        self.now += self.watchdog.due() or 0.0
        self.watchdog.tend()
        return self.watchdog.due() or 0.0

    def idle_look(self) -> bool:
        """Let the next look come, and be no more than that if nobody is at work."""
        self.now += self.watchdog.due() or 0.0
        return self.watchdog.look_at_idle()

    def looks(self, count: int) -> None:
        for _ in range(count):
            self.look()

    def causes(self) -> list[str]:
        return [cause for _, cause in self.died]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


@pytest.mark.parametrize("word", ["busy", "in_hooks", "handed"])
def test_it_looks_more_often_while_somebody_is_at_work(scene: Scene, word: str) -> None:
    assert scene.look() == TIMEOUT_S / IDLE_LOOKS
    setattr(scene.words, word, 1)
    assert scene.look() == TIMEOUT_S / LOOKS
    setattr(scene.words, word, 0)
    assert scene.look() == TIMEOUT_S / IDLE_LOOKS


def test_a_worker_without_progress_is_stuck_in_time(scene: Scene) -> None:
    scene.words.busy = 1
    scene.looks(LOOKS)
    assert not scene.died
    scene.look()
    assert scene.causes() == ["queue 0: no progress for 8 s with head 0"]


def test_a_stall_that_begins_right_after_an_idle_look_is_found_half_a_timeout_late(
    scene: Scene,
) -> None:
    scene.look()
    began = scene.now
    scene.words.busy = 1 + 3
    for _ in range(2 * LOOKS):
        scene.look()
        if scene.died:
            break
    ((when, cause),) = scene.died
    assert when - began == pytest.approx(1.5 * TIMEOUT_S)
    assert "no progress for 8 s with head 3" in cause


def test_work_that_gets_on_is_no_stall(scene: Scene) -> None:
    scene.words.busy = 1
    for _ in range(3 * LOOKS):
        scene.words.heartbeat += 1
        scene.look()
    assert not scene.died


def test_a_worker_that_has_stood_still_with_the_machine_has_time_once_more(scene: Scene) -> None:
    scene.words.busy = 1
    scene.looks(LOOKS)
    scene.now += 100 * TIMEOUT_S
    scene.look()
    assert not scene.died
    scene.look()
    assert scene.died


def test_a_stopped_worker_is_found_though_it_has_nothing_to_do(scene: Scene) -> None:
    scene.stopped = True
    scene.looks(LOOKS)
    assert not scene.died
    scene.look()
    assert scene.causes() == [f"worker {PID} has been stopped by a signal for 8 s"]


def test_one_that_goes_on_in_between_begins_anew(scene: Scene) -> None:
    scene.stopped = True
    scene.looks(LOOKS)
    scene.stopped = False
    scene.look()
    scene.stopped = True
    scene.looks(LOOKS)
    assert not scene.died


def test_a_look_at_idle_workers_is_all_there_is_to_do(scene: Scene) -> None:
    assert scene.idle_look()
    assert scene.watchdog.due() == TIMEOUT_S / IDLE_LOOKS
    assert not scene.watchdog.look_at_idle()  # it is not due


@pytest.mark.parametrize("word", ["busy", "in_hooks", "handed"])
def test_one_at_work_takes_more_than_that(scene: Scene, word: str) -> None:
    setattr(scene.words, word, 1)
    assert not scene.idle_look()
    assert scene.watchdog.due() == 0.0  # the look is still to be made


def test_so_does_one_that_is_stopped_or_was(scene: Scene) -> None:
    scene.stopped = True
    assert not scene.idle_look()
    scene.look()
    scene.stopped = False
    assert not scene.idle_look()


def test_so_does_a_look_that_comes_late(scene: Scene) -> None:
    scene.now += 100 * TIMEOUT_S
    assert not scene.watchdog.look_at_idle()


def test_a_stall_after_idle_looks_is_found_in_time(scene: Scene) -> None:
    scene.words.busy = 1
    scene.look()
    scene.words.busy = 0
    assert scene.idle_look()
    began = scene.now
    scene.words.busy = 1  # the same words as before
    for _ in range(2 * LOOKS):
        if not scene.idle_look():
            scene.look()
        if scene.died:
            break
    ((when, _),) = scene.died
    assert when - began == pytest.approx(1.5 * TIMEOUT_S)
