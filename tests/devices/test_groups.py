"""Several queues in one worker: they spin together, and a native device may serve several rings."""

from __future__ import annotations

from typing import Any

import pytest

from tests.devices.grouped import OneForAll, Together
from vuproc.testing import serve


@pytest.mark.parametrize("poll", ["auto", "off", 1000])
def test_each_way_to_wait_serves_every_queue(poll: Any) -> None:
    with serve(Together, poll=poll) as served, served.guest(queues=4) as guest:
        for number in range(200):
            answer = guest.do(number % 4, in_=[8])
            assert answer.content == b"%d" % (number + 1)
        tokens = [guest.submit(n % 4, in_=[8]) for n in range(80)]
        assert {int(guest.wait(token).content) for token in tokens} == set(range(201, 281))


def test_a_native_device_serves_several_rings() -> None:
    with serve(OneForAll) as served, served.guest(queues=3) as guest:
        pid = served.status().queues[0].pid
        for _ in range(3):
            tokens = [guest.submit(queue, [b"x"], [8]) for queue in (0, 1, 2) for _ in range(20)]
            answers = [guest.wait(token).content for token in tokens]
            assert answers == [b""] * 40 + [b"by hand"] * 20
            # One of its rings goes, the other goes on.
            guest.stop_queue(0)
            assert guest.do(1, [b"x"], [8]).written == 0
            guest.start_queue(0)
        assert served.status().queues[0].pid == pid
        killed = served.kill_worker()
        assert [guest.do(queue, [b"x"], [8]).written for queue in (0, 1, 2)] == [0, 0, 7]
        assert served.wait_worker(other_than=killed) != killed
