"""A buffer that the driver posts on one queue is there for what it posts on another after that."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.devices.ordered import RX, TX, Ordered, OrderedTasks
from vuproc.testing import Guest, Served, serve

SIZE = 16
ROUNDS = 3000


@pytest.fixture(scope="module", params=[Ordered, OrderedTasks])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with serve(request.param) as served:
        yield served


def post_unkicked(guest: Guest, size: int = SIZE) -> int:
    """A buffer on the receive queue, of which the device is not told."""
    queue = guest.queues[RX]
    return queue.submit([], [size], kick=False)


def test_a_buffer_is_there_before_the_request_that_needs_it(served: Served) -> None:
    """One at a time, so that the worker sleeps in between."""
    with served.guest(queues=2) as guest:
        for number in range(ROUNDS):
            serial = post_unkicked(guest)
            assert guest.do(TX, [b"%d" % number], [4]).content == b"some"
            assert guest.queues[RX].wait(serial, 30).content == b"%d" % number


def test_buffers_are_there_in_batches_of_any_size(served: Served) -> None:
    """Many at a time, while the worker is at work on those before."""
    chance = random.Random(1)
    with served.guest(queues=2) as guest:
        waiting: list[tuple[int, tuple[int, int], bytes]] = []
        for number in range(ROUNDS):
            serial = post_unkicked(guest)
            waiting.append((serial, guest.submit(TX, [b"%d" % number], [4]), b"%d" % number))
            if len(waiting) < 60 and chance.random() < 0.97:
                continue
            for serial, token, word in waiting:
                assert guest.wait(token).content == b"some"
                assert guest.queues[RX].wait(serial, 30).content == word
            waiting.clear()
