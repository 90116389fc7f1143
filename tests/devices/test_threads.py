"""Requests that a device's own threads finish: the driver hears of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.devices.threads import Threaded
from vuproc.testing import Served, serve

BOUND_S = 20.0


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(Threaded) as made:
        yield made


def test_the_driver_hears_of_what_another_thread_has_finished(served: Served) -> None:
    with served.guest() as guest:
        # One at a time: nothing else wakes the worker.
        for turn in range(50):
            text = b"x" * (turn % 7)
            done = guest.do(0, [b"fast " + text], [16], timeout_s=BOUND_S)
            assert done.written == len(text) and done.content[: len(text)] == text


def test_many_at_once_are_each_completed_once(served: Served) -> None:
    with served.guest() as guest:
        for turn in range(20):
            words = [b"fast %d" % (1000 * turn + n) for n in range(60)]
            tokens = [guest.submit(0, [word], [16]) for word in words]
            for word, token in zip(words, tokens, strict=True):
                done = guest.wait(token, BOUND_S)
                assert done.content[: done.written] == word.partition(b" ")[2]


def test_a_stop_waits_for_the_threads(served: Served) -> None:
    with served.guest() as guest:
        tokens = [guest.submit(0, [b"slow 0.3"], [16]) for _ in range(7)]
        # The eighth thread answers: so all of them are with the device.
        assert guest.do(0, [b"fast x"], [16], timeout_s=BOUND_S).written == 1
        pid = served.status().queues[0].pid
        # They are all with the device once a later one is answered.
        guest.do(0, [b"fast "], [16], timeout_s=BOUND_S)
        guest.stop_queue(0)
        assert [guest.queues[0].wait(token[1], BOUND_S).written for token in tokens] == [3] * 7
        assert served.status().queues[0].pid == pid


def test_what_is_the_worker_s_alone_is_said_to_a_thread(served: Served) -> None:
    with served.guest() as guest:
        done = guest.do(0, [b"release "], [64], timeout_s=BOUND_S)
        assert done.content[: done.written] == b"release is for the worker's thread: use call_soon"
        done = guest.do(0, [b"soon"], [16], timeout_s=BOUND_S)
        assert done.content[: done.written] == b"worker"
