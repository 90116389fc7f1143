"""How long a turn in Python goes on, and how somebody in a hurry has it end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.shm.guest import DATA, Guest, fail
from vuproc.shm.batch import Batch
from vuproc.shm.handling import hurry
from vuproc.shm.request import Request
from vuproc.shm.ring import SLICE_NS, Ring
from vuproc.workers.device_loop import DeviceLoop
from vuproc.workers.poller import Watcher

SIZE = 256
BATCH = 64
FOR_EVER_NS = 60_000_000_000


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(SIZE) as made:
        for head in range(SIZE):
            made.chain(head, [(DATA, 8, True)])
        yield made


def until_a_short_slice_is_over() -> None:
    """Take as long as a turn may that others wait for the end of."""
    end = time.monotonic_ns() + SLICE_NS
    while time.monotonic_ns() < end:
        pass


def served(ring: Ring, first: Callable[[Request], object]) -> int:
    """Requests of a turn whose first one does something and then takes long."""
    seen: list[int] = []

    def handle(request: Request) -> None:
        seen.append(request.head)
        if len(seen) == 1:
            first(request)
            until_a_short_slice_is_over()

    assert ring.drain(handle, fail, SIZE, FOR_EVER_NS) == len(seen)
    return len(seen)


def test_a_turn_ends_with_its_slice(guest: Guest) -> None:
    guest.offer(0, 1, 2)
    ring = guest.ring()
    # The clock is ahead of the beginning after any request.
    assert [ring.drain(lambda request: None, fail, SIZE, 0) for _ in range(4)] == [1, 1, 1, 0]


def test_one_of_batches_ends_between_two(guest: Guest) -> None:
    guest.offer(*range(BATCH + 3))
    ring = guest.ring()
    sizes: list[int] = []

    def handle_batch(batch: Batch) -> None:
        sizes.append(len(batch))

    assert ring.drain_batch(handle_batch, fail, SIZE, 0) == BATCH
    assert ring.pending
    assert ring.drain_batch(handle_batch, fail, SIZE, 0) == 3
    assert sizes == [BATCH, 3]


def test_a_long_one_goes_on_if_nobody_is_in_a_hurry(guest: Guest) -> None:
    guest.offer(0, 1, 2)
    assert served(guest.ring(), lambda request: None) == 3


def test_who_is_in_a_hurry_ends_it_soon(guest: Guest) -> None:
    guest.offer(0, 1, 2)
    assert served(guest.ring(), lambda request: hurry()) == 1


def test_a_hurry_of_before_is_forgotten(guest: Guest) -> None:
    guest.offer(0, 1)
    hurry()
    assert served(guest.ring(), lambda request: None) == 2


def test_a_request_that_another_thread_finishes_is_waited_for(guest: Guest) -> None:
    guest.offer(0, 1, 2)
    ring = guest.ring()

    held: list[Request] = []

    def handle(request: Request) -> None:
        if held:
            thread = threading.Thread(target=held[0].finish)
            thread.start()
            thread.join()
            until_a_short_slice_is_over()
        else:
            request.defer()
            held.append(request)

    assert ring.drain(handle, fail, SIZE, FOR_EVER_NS) == 2
    assert ring.drain(lambda request: None, fail, SIZE) == 1
    assert sorted(head for head, _ in guest.reap()) == [0, 1, 2]


@pytest.mark.parametrize("what", ["call_soon", "call_later", "watch"])
def test_what_a_device_asks_of_its_loop_is_waited_for(guest: Guest, what: str) -> None:
    guest.offer(0, 1, 2)
    watcher = Watcher()
    code: Any = SimpleNamespace()
    loop = DeviceLoop(watcher, code, {}, cast(Any, None))
    asked: dict[str, Callable[[], object]] = {
        "call_soon": lambda: loop.call_soon(lambda: None),
        "call_later": lambda: loop.call_later(0.0, lambda: None, again=False),
        "watch": lambda: loop.watch(guest.call, lambda: None, write=False),
    }
    try:
        assert served(guest.ring(), lambda request: asked[what]()) == 1
    finally:
        loop.close()
        watcher.close()
