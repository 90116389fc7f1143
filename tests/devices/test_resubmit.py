"""What becomes of requests over a worker's death: by queue, by request; and who is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices import recovering
from tests.devices.recovering import DROP, FAIL, RUN, PerQueue, PerRequest, Recovers
from vuproc.testing import Guest, serve

SIZE = 64


@pytest.fixture
def by_queue() -> Iterator[Guest]:
    with serve(PerQueue) as served, served.guest(queues=3) as guest:
        yield guest


def test_each_queue_has_its_own(by_queue: Guest) -> None:
    asked = [by_queue.do(queue, [b"resubmit"], [SIZE]).content for queue in range(3)]
    assert asked == [b"run", b"drop", b"fail"]
    held = [by_queue.submit(queue, [b"held"], [SIZE]) for queue in (RUN, DROP, FAIL)]
    # The answer says that what was posted before is with the device, on a queue with a lower
    # number, and on its own.
    for queue in (RUN, DROP, FAIL):
        by_queue.do(queue, [b"resubmit"], [SIZE])
    fatal = by_queue.submit(RUN, [b"die"], [SIZE])
    assert [by_queue.wait(token).content for token in held] == [
        b"run again",
        b"",
        b"failed: RequestAbandoned of 4 bytes",
    ]
    assert by_queue.wait(fatal).content == b"run again"


@pytest.mark.parametrize(
    ("queue", "answer"),
    [(RUN, b"run again"), (DROP, b""), (FAIL, b"failed: RequestAbandoned of 3 bytes")],
)
def test_so_it_is_for_the_request_that_killed(by_queue: Guest, queue: int, answer: bytes) -> None:
    assert by_queue.do(queue, [b"die"], [SIZE]).content == answer
    assert by_queue.do(queue, [b"recovered"], [SIZE]).content == b"True"


def test_each_request_may_have_its_own() -> None:
    with serve(PerRequest) as served, served.guest(queues=3) as guest:
        words = [b"choose run", b"choose drop", b"choose fail", b"twice", b"as the queue"]
        held = [guest.submit(0, [word], [SIZE]) for word in words]
        wrong = guest.do(0, [b"wrong"], [SIZE]).content
        assert wrong == b"resubmit is run, drop or fail, not 'dorp'"
        killed = served.kill_worker()
        assert [guest.wait(token).content for token in held] == [
            b"run again",
            b"",
            b"failed: RequestAbandoned of 11 bytes",
            b"",
            b"failed: RequestAbandoned of 12 bytes",
        ]
        served.wait_worker(other_than=killed)
        assert guest.do(0, [b"recovered"], [SIZE]).content == b"True"


def test_a_queue_that_is_set_up_anew_has_not_recovered_by_that() -> None:
    with serve(Recovers) as served:
        for _ in range(2):
            with served.guest(queues=2) as guest:
                assert {guest.do(queue, in_=[2]).content for queue in (0, 1)} == {b"00"}
                guest.reset()
                assert {guest.do(queue, in_=[2]).content for queue in (0, 1)} == {b"00"}


def test_after_a_death_the_new_worker_knows() -> None:
    with serve(Recovers) as served, served.guest(queues=2) as guest:
        killed = served.kill_worker(1)
        served.wait_worker(1, other_than=killed)
        assert guest.do(0, in_=[2]).content == b"00"
        assert guest.do(1, in_=[2]).content == b"11"


def test_after_a_rolling_restart_the_new_workers_know(tmp_path: Path) -> None:
    file = tmp_path / "recovers.yaml"

    def write(poll: str) -> Path:
        type_ref = f"{recovering.__file__}:Recovers"
        file.write_text(f"socket: ./s\ndevice: {{type: '{type_ref}', poll: {poll}}}\n")
        return file

    with serve(write("auto")) as served, served.guest(queues=2) as guest:
        assert {guest.do(queue, in_=[2]).content for queue in (0, 1)} == {b"00"}
        before = [queue.pid for queue in served.status().queues]
        write("off")
        assert any("poll" in line for line in served.reload())
        for queue in (0, 1):
            served.wait_worker(queue, other_than=before[queue])
            assert guest.do(queue, in_=[2]).content == b"11"
