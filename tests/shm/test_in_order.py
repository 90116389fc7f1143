"""With IN_ORDER requests are shown in the order of their fetches, whatever that of their ends."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from tests.shm.guest import DATA, F_EVENT_IDX, Guest, fail, take
from tests.shm.packed_guest import FRESH, PackedGuest, PackedMemory
from tests.shm.record import Record
from vuproc.shm.request import Request
from vuproc.shm.ring import Ring

F_IN_ORDER = 1 << 35
BUFFER = [(DATA, 8, True)]


class Driver(Protocol):
    """A ring of 8 entries with a record, in either layout; a request is known by its number."""

    def start(self) -> Ring:
        """The front-end starts the ring."""

    def restart(self) -> Ring:
        """Another worker goes on with it."""

    def send(self, number: int) -> None:
        """Make a request with 8 bytes to write available."""

    def back(self) -> list[tuple[int, int]]:
        """(number, used length) of what has come back since the last time."""

    def live(self) -> int:
        """Requests that the record has."""


class SplitDriver:
    def __init__(self, features: int, stack: ExitStack) -> None:
        self.features = features
        self.guest = stack.enter_context(Guest(8))
        self.record = stack.enter_context(Record(8))

    def start(self) -> Ring:
        return self.guest.ring(self.features, base=0, record=self.record.map(), fresh=True)

    def restart(self) -> Ring:
        return self.guest.ring(self.features, record=self.record.map())

    def send(self, number: int) -> None:
        self.guest.submit(number, BUFFER)

    def back(self) -> list[tuple[int, int]]:
        return self.guest.reap()

    def live(self) -> int:
        return len(self.record.live)


class PackedDriver:
    def __init__(self, features: int, stack: ExitStack) -> None:
        self.features = features
        self.guest = stack.enter_context(PackedGuest(8))
        self.record = stack.enter_context(PackedMemory(8))

    def start(self) -> Ring:
        base = FRESH | FRESH << 16
        return self.guest.packed(self.features, base=base, record=self.record.map(), fresh=True)

    def restart(self) -> Ring:
        return self.guest.packed(self.features, base=None, record=self.record.map())

    def send(self, number: int) -> None:
        self.guest.send(number, BUFFER)

    def back(self) -> list[tuple[int, int]]:
        return self.guest.back_again()

    def live(self) -> int:
        return len(self.record.live)


@pytest.fixture(params=[SplitDriver, PackedDriver], ids=["split", "packed"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with ExitStack() as stack:
        yield request.param(F_IN_ORDER | F_EVENT_IDX, stack)


def send(driver: Driver, *numbers: int) -> None:
    for number in numbers:
        driver.send(number)


def end(ring: Ring, *requests: Request) -> None:
    for request in requests:
        request.finish(request.queue + 1)
    ring.publish()


def test_what_is_done_before_its_turn_waits_for_it(driver: Driver) -> None:
    ring = driver.start()
    send(driver, 5, 2, 7)
    first, second, third = take(ring)
    end(ring, third, second)
    assert (driver.back(), ring.in_flight, ring.outstanding) == ([], 1, 3)
    assert driver.live() == 3 and second.finished
    end(ring, first)
    assert driver.back() == [(5, 4), (2, 4), (7, 4)]
    assert (ring.in_flight, ring.outstanding, driver.live()) == (0, 0, 0)


def test_without_the_feature_nobody_waits() -> None:
    for kind in (SplitDriver, PackedDriver):
        with ExitStack() as stack:
            driver = kind(0, stack)
            ring = driver.start()
            send(driver, 5, 2)
            end(ring, take(ring)[1])
            assert driver.back() == [(2, 4)]


def test_what_waited_when_its_worker_died_is_run_again_in_order(driver: Driver) -> None:
    ring = driver.start()
    send(driver, 5, 2, 7)
    _, second, _ = take(ring)
    end(ring, second)
    ring.stop(keep=True)
    ring = driver.restart()
    assert len(ring.recovered) == 3
    first, second, third = take(ring)
    end(ring, third, second)
    assert driver.back() == []
    end(ring, first)
    assert [number for number, _ in driver.back()] == [5, 2, 7]


def test_a_stop_leaves_what_waits_in_the_record(driver: Driver) -> None:
    ring = driver.start()
    send(driver, 5, 2)
    first, second = take(ring)
    end(ring, second)
    first.release()
    ring.stop()
    assert (ring.kept, driver.live()) == (2, 2)
    ring = driver.restart()
    end(ring, *take(ring))
    assert [number for number, _ in driver.back()] == [5, 2]


def test_a_stop_takes_back_what_nobody_has_begun(driver: Driver) -> None:
    ring = driver.start()
    send(driver, 5, 2)
    first, second = take(ring)
    first.finish()
    second.release()
    ring.publish()
    ring.stop()
    assert (ring.kept, driver.live(), driver.back()) == (0, 0, [(5, 0)])
    ring = driver.restart()
    end(ring, *take(ring))
    assert driver.back() == [(2, 4)]


def test_a_request_that_was_given_back_keeps_its_turn(driver: Driver) -> None:
    ring = driver.start()
    send(driver, 5, 2, 7)
    first, second, third = take(ring)
    first.release()
    end(ring, second, third)
    assert driver.back() == []
    ring.readmit()
    end(ring, *take(ring))
    assert [number for number, _ in driver.back()] == [5, 2, 7]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", [SplitDriver, PackedDriver])
def test_order_holds_over_any_traffic_and_deaths(
    kind: type[SplitDriver | PackedDriver], seed: int
) -> None:
    rng = random.Random(seed)
    with ExitStack() as stack:
        driver = kind(F_IN_ORDER | rng.choice((0, F_EVENT_IDX)), stack)
        ring = driver.start()
        free = list(range(8))
        out: deque[int] = deque()
        held: list[Request] = []

        def handle(request: Request) -> None:
            if rng.random() < 0.6:
                request.defer()
                held.append(request)

        done = 0
        while done < 200:
            while free and rng.random() < 0.7:
                out.append(free.pop(rng.randrange(len(free))))
                driver.send(out[-1])
            if rng.random() < 0.1:
                held.clear()
                ring.stop(keep=True)
                ring = driver.restart()
                assert len(ring.recovered) <= len(out)
            ring.drain(handle, fail, rng.randint(1, 8))
            rng.shuffle(held)
            for request in held[: rng.randint(0, len(held))]:
                held.remove(request)
                request.finish()
            ring.publish()
            for number, _ in driver.back():
                assert number == out.popleft()
                free.append(number)
                done += 1
        assert ring.broken is None and driver.live() <= len(out)
