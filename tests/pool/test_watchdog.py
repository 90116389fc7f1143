"""The watchdog, with a clock of its own: who is stuck, and who has only stood still."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vuproc.pool import watchdog
from vuproc.pool.watchdog import LOOKS, Watchdog

TIMEOUT_S = 4.0
LOOK_S = TIMEOUT_S / LOOKS
PID = 77


class Scene:
    """One worker with one queue, as the watchdog sees them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.busy = 1
        self.stopped = False
        self.died: list[str] = []
        monkeypatch.setattr("vuproc.pool.watchdog.time.monotonic", lambda: self.now)
        monkeypatch.setattr(watchdog, "_is_stopped", lambda _pid: self.stopped)
        counters: Any = SimpleNamespace(
            advance=lambda: None,
            handed_since=lambda _looks: 0,
            snapshot=lambda: SimpleNamespace(busy=self.busy, heartbeat=5, hooks=0),
        )
        slots: Any = Slots([SimpleNamespace(worker=SimpleNamespace(pid=PID), queues=[0])])
        slots.died = lambda _slot, cause: self.died.append(cause)
        pool: Any = SimpleNamespace(history=SimpleNamespace(in_postcopy=False), slots=slots)
        self.watchdog = Watchdog(TIMEOUT_S, TIMEOUT_S, pool, [counters])

    def looks(self, count: int) -> None:
        """So many of them, each when it is due."""
        for _ in range(count):
            due = self.watchdog.due()
            assert due is not None
            self.now += due
            self.watchdog.tend()


class Slots(list[Any]):
    pass


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_a_worker_without_progress_is_stuck_in_time(scene: Scene) -> None:
    scene.looks(LOOKS)
    assert not scene.died
    scene.looks(1)
    assert scene.died == ["queue 0: no progress for 4 s with head 0"]


def test_a_worker_that_has_stood_still_with_the_machine_has_time_once_more(scene: Scene) -> None:
    scene.looks(LOOKS)
    scene.now += 100 * TIMEOUT_S
    scene.looks(1)
    assert not scene.died
    scene.looks(1)
    assert scene.died


def test_a_stopped_worker_is_found_though_it_has_nothing_to_do(scene: Scene) -> None:
    scene.busy, scene.stopped = 0, True
    scene.looks(LOOKS)
    assert not scene.died
    scene.looks(1)
    assert scene.died == [f"worker {PID} has been stopped by a signal for 4 s"]


def test_one_that_goes_on_in_between_begins_anew(scene: Scene) -> None:
    scene.busy, scene.stopped = 0, True
    scene.looks(LOOKS)
    scene.stopped = False
    scene.looks(1)
    scene.stopped = True
    scene.looks(LOOKS)
    assert not scene.died
