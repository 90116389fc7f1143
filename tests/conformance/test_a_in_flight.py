"""Catalogue rows A29 and A30: control messages while requests are in flight."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.checks import readable, serving
from tests.conformance.gated import ANSWER, Gated, Gates
from vuproc.fd import Fd
from vuproc.testing.guest import Guest
from vuproc.testing.memory import RamRegion
from vuproc.testing.serve import Served, serve

DRAIN_WITHIN_S = 30.0
"""A drain's deadline and the worker's replacement."""


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gates]:
    made = Gates(tmp_path, queues=2)
    yield made
    made.close()


@pytest.fixture
def gated(gates: Gates) -> Iterator[Served]:
    with serve(Gated, gate=gates.path, queues=2) as served:
        yield served


class Pending:
    """A message sent by another thread, whose answer is not there yet."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._answer: list[Any] = []
        self._thread = threading.Thread(target=lambda: self._answer.append(ask()))
        self._thread.start()

    def answer(self, timeout_s: float = DRAIN_WITHIN_S) -> Any:
        self._thread.join(timeout_s)
        assert self._answer, "the message was not answered"
        return self._answer[0]

    @property
    def answered(self) -> bool:
        return bool(self._answer)


def submitted(guest: Guest, gates: Gates, queue: int, count: int) -> list[tuple[int, int]]:
    """Requests that the device has in its hands."""
    tokens = [guest.submit(queue, [b"?"], [16]) for _ in range(count)]
    gates.await_taken(queue, count)
    return tokens


def unanswered(guest: Guest, pending: Pending) -> None:
    """The message waits: the connection stays silent for a while."""
    with Fd(guest.front_end.socket.fileno()) as watched:
        try:
            # Not for long: a worker that does not obey within two seconds is replaced.
            assert not readable(watched, 0.1)
        finally:
            watched.take()
    assert not pending.answered


def test_a29_base_is_told_when_the_last_request_is_done(gated: Served, gates: Gates) -> None:
    with gated.guest(queues=2) as guest:
        tokens = submitted(guest, gates, 0, 5)
        stop = Pending(lambda: guest.stop_queue(0))
        unanswered(guest, stop)
        gates.let_go(0, 4)
        unanswered(guest, stop)
        gates.let_go(0)
        assert stop.answer() == 5
        assert guest.queues[0].split.used_index == 5
        assert [guest.wait(token).content for token in tokens] == [ANSWER] * 5


def test_a29_other_queue_goes_on_during_the_drain(gated: Served, gates: Gates) -> None:
    with gated.guest(queues=2) as guest:
        submitted(guest, gates, 0, 1)
        stop = Pending(lambda: guest.stop_queue(0))
        token = guest.submit(1, [b"?"], [16])
        gates.let_go(1)
        assert guest.wait(token).content == ANSWER
        assert not stop.answered
        gates.let_go(0)
        assert stop.answer() == 1


def test_a29_nothing_is_written_after_the_base_was_told(gated: Served, gates: Gates) -> None:
    with gated.guest(queues=2) as guest:
        queue = guest.queues[0]
        submitted(guest, gates, 0, 3)
        gates.let_go(0, 3)
        assert guest.stop_queue(0) == 3
        # More is offered and kicked, and the device is asked to go on.
        guest.submit(0, [b"?"], [16])
        queue.kick()
        before = bytes(guest.ram.regions[0].buffer)
        gates.let_go(0, 3)
        gates.let_go(1, 1)
        token = guest.submit(1, [b"?"], [16])
        gates.let_go(1)
        guest.wait(token)
        changed = _changes(before, bytes(guest.ram.regions[0].buffer))
        other = guest.queues[1].block
        own = range(queue.block.offset, queue.block.offset + queue.block.size)
        assert not changed.intersection(own), "the stopped ring was written to"
        assert changed.intersection(range(other.offset, other.offset + other.size))


def test_a29_device_that_never_finishes_is_replaced(gated: Served, gates: Gates) -> None:
    with gated.guest(queues=2, timeout_s=DRAIN_WITHIN_S) as guest:
        before = serving(gated)
        submitted(guest, gates, 0, 3)
        base = guest.stop_queue(0)
        # What was in flight is not completed: whoever starts the ring again finds it there.
        assert base == guest.queues[0].split.used_index == 0
        after = serving(gated)
        assert len(before - after) == 1
        gated.wait_for_line("queue 0")


def test_a30_memory_is_replaced_when_the_last_request_is_done(gated: Served, gates: Gates) -> None:
    with gated.guest(queues=2) as guest:
        tokens = submitted(guest, gates, 0, 2) + submitted(guest, gates, 1, 2)
        change = Pending(lambda: guest.front_end.set_memory(guest.ram.regions))
        gates.let_go(0, 2)
        unanswered(guest, change)
        gates.let_go(1, 2)
        change.answer()
        assert [guest.wait(token).content for token in tokens] == [ANSWER] * 4
        again = guest.submit(0, [b"?"], [16])
        gates.let_go(0)
        assert guest.wait(again).content == ANSWER


@pytest.mark.parametrize("message", ["ADD_MEM_REG", "REM_MEM_REG"])
def test_a30_region_comes_and_goes_with_requests_in_flight(
    gated: Served, gates: Gates, message: str
) -> None:
    with gated.guest(queues=2) as guest, RamRegion(1 << 40, 1 << 20) as more:
        if message == "REM_MEM_REG":
            guest.front_end.add_region(more)
        token = submitted(guest, gates, 0, 1)[0]
        if message == "ADD_MEM_REG":
            change = Pending(lambda: guest.front_end.add_region(more))
        else:
            change = Pending(lambda: guest.front_end.remove_region(more))
        gates.let_go(0)
        change.answer()
        assert guest.wait(token).content == ANSWER


def test_a40_disconnect_with_requests_in_flight(gated: Served, gates: Gates) -> None:
    with gated.guest(queues=2) as guest:
        submitted(guest, gates, 0, 3)
    with gated.guest(queues=2, timeout_s=DRAIN_WITHIN_S) as guest:
        token = guest.submit(0, [b"?"], [16])
        gates.let_go(0, 4)
        assert guest.wait(token).content == ANSWER


def test_a42_reset_with_requests_in_flight(gated: Served, gates: Gates) -> None:
    with gated.guest(queues=2, timeout_s=DRAIN_WITHIN_S) as guest:
        submitted(guest, gates, 0, 3)
        reset = Pending(lambda: guest.set_status(0))
        gates.let_go(0, 3)
        reset.answer()
        guest.front_end.set_features(guest.front_end.features)
        guest.start_queue(0)
        token = guest.submit(0, [b"?"], [16])
        gates.let_go(0)
        assert guest.wait(token).content == ANSWER


def _changes(before: bytes, after: bytes) -> set[int]:
    page = 4096
    return {
        at + i
        for at in range(0, len(before), page)
        if before[at : at + page] != after[at : at + page]
        for i in range(page)
        if before[at + i] != after[at + i]
    }
