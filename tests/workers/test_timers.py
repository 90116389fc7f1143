"""Timers and calls of a device, with a clock that stands still."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from vuproc.workers.timers import Soon, Timers


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Calls:
    """What was called, and when."""

    def __init__(self, clock: Clock) -> None:
        self.made: list[tuple[str, float]] = []
        self._clock = clock

    def of(self, name: str) -> Callable[[], None]:
        return lambda: self.made.append((name, self._clock.now - 1000.0))


def run(callback: Callable[[], None]) -> None:
    callback()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def calls(clock: Clock) -> Calls:
    return Calls(clock)


@pytest.fixture
def timers(clock: Clock) -> Timers:
    return Timers(clock)


def pass_to(clock: Clock, timers: Timers, end: float) -> None:
    """As a loop that sleeps until each is due."""
    while True:
        due = timers.due()
        if due is None or clock.now + due > 1000.0 + end:
            clock.now = 1000.0 + end
            return
        clock.now += due
        timers.run(run)


def test_without_timers_nothing_is_due(timers: Timers) -> None:
    assert timers.due() is None
    timers.run(run)


def test_calls_come_in_the_order_of_their_times(clock: Clock, timers: Timers, calls: Calls) -> None:
    for name, seconds in (("c", 3.0), ("a", 1.0), ("d", 3.5), ("b", 2.0)):
        timers.add(seconds, calls.of(name), again=False)
    assert timers.due() == 1.0
    pass_to(clock, timers, 10.0)
    assert calls.made == [("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 3.5)]
    assert timers.due() is None


def test_at_the_same_time_the_first_that_was_made_is_called_first(
    clock: Clock, timers: Timers, calls: Calls
) -> None:
    for number in range(20):
        timers.add(1.0, calls.of(str(number)), again=False)
    pass_to(clock, timers, 1.0)
    assert [name for name, _ in calls.made] == [str(number) for number in range(20)]


def test_a_periodic_one_keeps_its_times(clock: Clock, timers: Timers, calls: Calls) -> None:
    timers.add(0.5, calls.of("tick"), again=True)
    pass_to(clock, timers, 2.2)
    assert calls.made == [("tick", 0.5), ("tick", 1.0), ("tick", 1.5), ("tick", 2.0)]


def test_one_late_call_does_not_put_off_the_next(
    clock: Clock, timers: Timers, calls: Calls
) -> None:
    timers.add(1.0, calls.of("tick"), again=True)
    clock.now += 1.75
    timers.run(run)
    assert timers.due() == pytest.approx(0.25)
    # What is missed is not made up for.
    clock.now += 4.0
    timers.run(run)
    assert [at for _, at in calls.made] == [1.75, 5.75]
    assert timers.due() == pytest.approx(0.25)


def test_a_cancelled_one_is_not_called(clock: Clock, timers: Timers, calls: Calls) -> None:
    once = timers.add(1.0, calls.of("once"), again=False)
    tick = timers.add(1.0, calls.of("tick"), again=True)
    once.cancel()
    pass_to(clock, timers, 2.0)
    assert calls.made == [("tick", 1.0), ("tick", 2.0)]
    tick.cancel()
    tick.cancel()
    assert timers.due() is None


def test_one_that_was_called_is_not_active(clock: Clock, timers: Timers, calls: Calls) -> None:
    once = timers.add(1.0, calls.of("once"), again=False)
    tick = timers.add(1.0, calls.of("tick"), again=True)
    pass_to(clock, timers, 1.0)
    assert (once.active, tick.active) == (False, True)


def test_a_callback_may_cancel_others_and_itself(
    clock: Clock, timers: Timers, calls: Calls
) -> None:
    def first() -> None:
        calls.of("first")()
        second.cancel()
        tick.cancel()

    tick = timers.add(1.0, first, again=True)
    second = timers.add(1.0, calls.of("second"), again=False)
    pass_to(clock, timers, 5.0)
    assert calls.made == [("first", 1.0)]


def test_a_callback_may_make_more_which_come_later(
    clock: Clock, timers: Timers, calls: Calls
) -> None:
    def again() -> None:
        calls.of("again")()
        if len(calls.made) < 3:
            timers.add(0.0, again, again=False)

    timers.add(0.0, again, again=False)
    for expected in (1, 2, 3, 3):
        # One that is due at once waits for the next turn, so that requests get theirs.
        timers.run(run)
        assert len(calls.made) == expected


def test_cancelled_timers_do_not_pile_up(timers: Timers) -> None:
    """As with a timeout of a request that never comes to anything."""
    timers.add(1e6, lambda: None, again=False)
    for _ in range(10_000):
        timers.add(1e5, lambda: None, again=False).cancel()
    assert len(timers) < 1000


@pytest.mark.parametrize(
    ("seconds", "again"),
    [(-1.0, False), (float("inf"), False), (float("nan"), False), (0.0, True), (-0.5, True)],
)
def test_what_is_no_time_is_refused(timers: Timers, seconds: float, again: bool) -> None:
    with pytest.raises(ValueError, match="seconds"):
        timers.add(seconds, lambda: None, again=again)
    assert timers.due() is None


@pytest.fixture
def soon() -> Iterator[Soon]:
    made = Soon()
    yield made
    made.close()


def readable(soon: Soon, seconds: float = 0.0) -> bool:
    return bool(select.select([soon.fileno()], [], [], seconds)[0])


def test_calls_of_many_threads_are_all_made_in_the_order_of_each(soon: Soon) -> None:
    made: list[tuple[int, int]] = []

    def call(thread: int) -> None:
        for number in range(500):
            soon.add(partial(made.append, (thread, number)))

    threads = [threading.Thread(target=call, args=(thread,)) for thread in range(4)]
    for each in threads:
        each.start()
    while len(made) < 2000:
        assert readable(soon, 20.0)
        soon.run(run)
    for each in threads:
        each.join()
    # The last call may have been made before its thread had signalled it.
    soon.run(run)
    assert not readable(soon)
    for thread in range(4):
        assert [number for of, number in made if of == thread] == list(range(500))


def test_a_call_that_is_made_by_a_call_comes_in_the_next_turn(soon: Soon) -> None:
    made: list[int] = []

    def again() -> None:
        made.append(len(made))
        soon.add(again)

    soon.add(again)
    for turn in range(3):
        assert readable(soon)
        soon.run(run)
        assert made == list(range(turn + 1))
