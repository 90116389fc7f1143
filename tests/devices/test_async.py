"""Devices whose `handle` is an `async def`: a task a request, in asyncio as the loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.devices.asynchronous import WAITS, WAKES, Answers, Plain, Sends
from vuproc.testing import Guest, NoCompletion, Served, serve

SIZE = 64


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(Answers) as served:
        yield served


@pytest.fixture
def guest(served: Served) -> Iterator[Guest]:
    with served.guest(queues=2) as guest:
        yield guest


def said(guest: Guest, words: bytes, queue: int = WAKES) -> bytes:
    return guest.do(queue, [words], [SIZE]).content


def test_an_answer_comes_when_the_task_has_slept(guest: Guest) -> None:
    assert said(guest, b"sleep 0.05") == b"done 0.05"


def test_a_request_that_another_task_finishes_is_shown_at_once(guest: Guest) -> None:
    """Nothing else wakes the worker then."""
    assert said(guest, b"keep 0.05") == b"given"


def test_many_requests_wait_at_once_and_end_in_any_order(guest: Guest) -> None:
    waiting = [guest.submit(WAITS, [b"wait %d" % n], [SIZE]) for n in range(40)]
    # They are all with the device once a later one is answered.
    assert said(guest, b"sleep 0", WAITS) == b"done 0"
    assert int(said(guest, b"most").split()[1]) >= 40
    for number in reversed(range(40)):
        assert said(guest, b"wake %d" % number) == b"done %d" % number
        assert guest.wait(waiting[number]).content == b"done %d" % number


def test_many_sleep_together(guest: Guest) -> None:
    waiting = [guest.submit(WAITS, [b"sleep 0.2"], [SIZE]) for _ in range(60)]
    assert {guest.wait(each).content for each in waiting} == {b"done 0.2"}
    assert int(said(guest, b"most").split()[1]) >= 60


ERRORS = [(b"raise", b"RuntimeError"), (b"return", b"TypeError"), (b"exit", b"SystemExit")]


@pytest.mark.parametrize(
    ("word", "error"),
    ERRORS,
)
def test_an_error_fails_one_request_and_is_logged(
    served: Served, guest: Guest, word: bytes, error: bytes
) -> None:
    after, before = len(served.lines), served.status().queues[WAKES]
    pid, failed = before.pid, before.errors
    other = guest.submit(WAITS, [b"wait error"], [SIZE])
    assert said(guest, word) == error
    served.wait_for_line(f"{error.decode()}: ", after=after)
    assert said(guest, b"wake error") == b"done error"
    assert guest.wait(other).content == b"done error"
    assert served.status().queues[0].pid == pid
    assert served.status().queues[WAKES].errors == failed + 1


def test_a_cancelled_task_is_a_failed_request(guest: Guest) -> None:
    waiting = guest.submit(WAITS, [b"wait cancelled"], [SIZE])
    assert said(guest, b"sleep 0", WAITS) == b"done 0"
    assert said(guest, b"cancel cancelled") == b"done cancelled"
    assert guest.wait(waiting).content == b"CancelledError"


def test_a_stop_waits_for_the_tasks_of_its_queue(served: Served, guest: Guest) -> None:
    pid = served.status().queues[0].pid
    sleeping = guest.submit(WAITS, [b"sleep 0.3"], [SIZE])
    assert said(guest, b"sleep 0", WAITS) == b"done 0"  # so that one is with the device
    guest.stop_queue(WAITS)
    assert guest.wait(sleeping).content == b"done 0.3"
    # The other queue goes on, in the same worker.
    assert said(guest, b"sleep 0") == b"done 0"
    assert served.status().queues[0].pid == pid


def test_a_dead_workers_tasks_are_begun_again(served: Served, guest: Guest) -> None:
    sleeping = [guest.submit(WAITS, [b"sleep 0.5"], [SIZE]) for _ in range(8)]
    assert said(guest, b"sleep 0", WAITS) == b"done 0"
    killed = served.kill_worker(WAITS)
    assert [guest.wait(each).content for each in sleeping] == [b"done 0.5"] * 8
    assert served.wait_worker(WAITS, other_than=killed) != killed


def test_a_timer_of_the_worker_from_within_a_task(guest: Guest) -> None:
    assert said(guest, b"later 0.05") == b"done 0.05"


def test_what_no_request_is_to_blame_for_is_logged(served: Served, guest: Guest) -> None:
    after, pid = len(served.lines), served.status().queues[0].pid
    assert said(guest, b"stray") == b"done "
    served.wait_for_line("Answers, in asyncio: LookupError: of nobody", after=after)
    assert said(guest, b"sleep 0") == b"done 0"
    assert served.status().queues[0].pid == pid


def test_tasks_that_wait_for_ever_give_their_requests_back() -> None:
    with serve(Answers) as served:
        with served.guest(queues=2) as guest:
            pid = served.status().queues[0].pid
            waiting = guest.submit(WAITS, [b"forever"], [SIZE])
            assert said(guest, b"sleep 0", WAITS) == b"done 0"
            for _ in range(3):
                guest.stop_queue(WAITS)
                queue = guest.queues[WAITS]
                guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=WAITS)
                guest.kick_queue(queue)
                # It has come again: nothing else would wait for its being given back.
                assert said(guest, b"sleep 0", WAITS) == b"done 0"
            with pytest.raises(NoCompletion):
                guest.wait(waiting, 0.05)
        served.wait_for_line("disconnected")
        assert served.status().queues[0].pid == pid
        assert served.stop() == 0
    assert not [line for line in served.lines if "Traceback" in line or "never retrieved" in line]


def test_a_task_of_the_devices_own_pulls_buffers() -> None:
    with serve(Sends) as served, served.guest(queues=2) as guest:
        for number in range(3):
            guest.do(1, [b"early %d" % number])
        guest.keep_filled(0, count=32, size=SIZE)
        assert [guest.receive(0) for _ in range(3)] == [b"early %d" % n for n in range(3)]
        for number in range(200):
            guest.do(1, [b"%d" % number])
            assert guest.receive(0) == b"%d" % number


def test_without_an_async_handle_there_is_no_asyncio_loop() -> None:
    with serve(Plain) as served, served.guest() as guest:
        assert b"handle is not an async def" in guest.do(0, [], [200]).content
