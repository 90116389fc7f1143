"""Devices that die, block, raise or take at an awkward moment: the queue goes on."""

from __future__ import annotations

import os
import signal

import pytest

from tests.devices.awkward import (
    RX,
    TX,
    Deadly,
    Raises,
    Releases,
    TakesElsewhere,
    TopsUp,
)
from vuproc.spec.vhost_user import VRING_NO_FD
from vuproc.testing import Guest, serve

BOUND_S = 20.0


def said(guest: Guest, word: bytes, queue: int = 0) -> bytes:
    return guest.do(queue, [word], [64], timeout_s=BOUND_S).content.rstrip(b"\0")


@pytest.mark.parametrize("how", [b"segv", b"kill"])
def test_a_coroutine_that_kills_its_worker_is_failed_after_three_attempts(how: bytes) -> None:
    with serve(Deadly) as served, served.guest() as guest:
        assert said(guest, b"hello") == b"ok"
        assert said(guest, how) == b""
        assert said(guest, b"hello") == b"ok"
        queue = served.status().queues[0]
        assert (queue.state, queue.restarts) == ("running", 3)


def test_a_coroutine_that_blocks_is_replaced() -> None:
    with serve(Deadly, file={"stall_timeout": 0.5}) as served, served.guest() as guest:
        assert said(guest, b"hello") == b"ok"
        assert said(guest, b"block") == b""  # failed at last, as one that kills
        assert said(guest, b"hello") == b"ok"
        assert "no progress" in served.status().queues[0].causes[-1]


def test_a_polled_ring_is_looked_at_however_busy_asyncio_is() -> None:
    with serve(Deadly) as served, served.guest() as guest:
        guest.front_end.request("SET_VRING_KICK", value=VRING_NO_FD)
        assert [said(guest, b"spin") for _ in range(5)] == [b"ok"] * 5


def test_a_queue_whose_available_raised_is_announced_again() -> None:
    with serve(Raises) as served, served.guest() as guest:
        assert said(guest, b"x") == b"ok"
        queue = guest.queues[0]
        bad, left = queue.submit_many([([b"bad"], [2]), ([b"x"], [2])])
        assert queue.wait(bad, BOUND_S).content == b"ok"
        served.wait_for_line("one bad request")
        (later,) = queue.submit_many([([b"x"], [2])])
        assert [queue.wait(token, BOUND_S).content for token in (left, later)] == [b"ok"] * 2


def test_nothing_is_taken_while_a_change_of_memory_waits() -> None:
    with serve(TopsUp) as served, served.guest(queues=2) as guest:
        guest.keep_filled(RX, count=16, size=64)
        assert said(guest, b"x", TX) == b"late"
        pid = served.status().queues[RX].pid
        for _ in range(2):
            token = guest.submit(TX, [b"x"], [8])
            guest.front_end.set_memory(guest.ram.regions)
            assert guest.wait(token, BOUND_S).content[:4] == b"late"
        assert served.status().queues[RX].pid == pid


def test_another_thread_that_takes_is_told_so_and_disturbs_nothing() -> None:
    with serve(TakesElsewhere) as served, served.guest(queues=2) as guest:
        guest.keep_filled(RX, count=8, size=64)
        assert said(guest, b"x", TX) == b"take is for the worker's thread: use call_soon"
        pid = served.status().queues[RX].pid
        guest.stop_queue(RX)
        assert served.status().queues[RX].pid == pid


def test_what_is_released_without_a_stop_comes_again_on_a_polled_ring() -> None:
    with serve(Releases) as served, served.guest() as guest:
        guest.front_end.request("SET_VRING_KICK", value=VRING_NO_FD)
        token = guest.submit(0, [b"later"], [2])
        assert guest.wait(token, BOUND_S).content == b"ok"


def test_what_is_released_without_a_stop_comes_again_with_a_kick() -> None:
    with serve(Releases) as served, served.guest() as guest:
        token = guest.submit(0, [b"later"], [2])
        # Each turn of the queue may be one with the last; that of a kick is a new one.
        kicks = served.status().queues[0].counters["kicks"]
        while served.status().queues[0].counters["kicks"] < kicks + 2:
            assert said(guest, b"x") == b"ok"
        assert guest.wait(token, BOUND_S).content == b"ok"


@pytest.mark.parametrize("message", ["SET_VRING_CALL", "SET_VRING_KICK"])
def test_a_worker_that_dies_over_a_descriptor_leaves_a_queue_that_runs(message: str) -> None:
    with serve(Releases) as served, served.guest() as guest:
        queue = guest.queues[0]
        assert queue.kick_bell is not None
        bell = queue.call_bell if message == "SET_VRING_CALL" else queue.kick_bell
        for _ in range(6):
            assert said(guest, b"x") == b"ok"
            pid = served.status().queues[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            guest.front_end.request(message, [bell.theirs], value=0)
        assert said(guest, b"x") == b"ok"
