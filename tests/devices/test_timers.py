"""What a device has called later, again and again, or by a thread of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.devices.timing import Clockwork
from vuproc.testing import Guest, Served, serve

SIZE = 64


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(Clockwork) as served:
        yield served


@pytest.fixture
def guest(served: Served) -> Iterator[Guest]:
    with served.guest() as guest:
        yield guest


def said(guest: Guest, words: bytes) -> bytes:
    return guest.do(0, [words], [SIZE]).content


@pytest.mark.parametrize("seconds", [0.0, 0.0004, 0.003, 0.05])
def test_a_call_comes_at_its_time_and_never_before(guest: Guest, seconds: float) -> None:
    took = int(said(guest, b"later %f" % seconds)) / 1e6
    # How late is the bench's to say, on a machine that does nothing else.
    assert seconds <= took < seconds + 5.0


def test_calls_come_in_the_order_of_their_times(guest: Guest) -> None:
    tokens = [guest.submit(0, [b"later %f" % (n / 1000)], [SIZE]) for n in (300, 200, 100)]
    assert int(guest.wait(tokens[2]).content) >= 100_000
    assert int(guest.wait(tokens[1]).content) >= 200_000
    assert int(guest.wait(tokens[0]).content) >= 300_000


def test_a_periodic_call_ends_when_it_is_cancelled(guest: Guest) -> None:
    assert int(said(guest, b"every 0.01")) >= 50_000
    assert said(guest, b"cancel") == b"True"


def test_threads_hand_over_what_they_have(guest: Guest) -> None:
    assert int(said(guest, b"thread 1000")) >= 1000
    tokens = [guest.submit(0, [b"thread 100"], [SIZE]) for _ in range(8)]
    assert all(guest.wait(token).content for token in tokens)


def test_what_a_call_raises_is_logged_and_ends_nothing(served: Served, guest: Guest) -> None:
    after, pid = len(served.lines), served.status().queues[0].pid
    said(guest, b"raise")
    served.wait_for_line("Clockwork.fault: LookupError: on demand", after=after)
    # The periodic one goes on: it is counted.
    served.wait_for_line(lambda line: "Clockwork.fault" in line and "more" in line, after=after)
    said(guest, b"calm")
    assert served.status().queues[0].pid == pid
    assert int(said(guest, b"later 0")) >= 0


@pytest.mark.parametrize("seconds", [b"-1", b"nan", b"inf"])
def test_what_is_no_time_is_refused(guest: Guest, seconds: bytes) -> None:
    assert said(guest, b"wrong " + seconds) == b"refused"


def test_a_queue_that_stops_waits_for_its_calls(served: Served, guest: Guest) -> None:
    pid = served.status().queues[0].pid
    token = guest.submit(0, [b"later 0.3"], [SIZE])
    assert said(guest, b"cancel") == b"True"  # so that one is with the device
    guest.stop_queue(0)
    assert int(guest.wait(token).content) >= 300_000
    assert served.status().queues[0].pid == pid


def test_outside_of_a_worker_there_is_no_loop() -> None:
    device = Clockwork()
    for call in (
        lambda: device.call_soon(device.tick),
        lambda: device.call_later(1.0, device.tick),
        lambda: device.call_every(1.0, device.tick),
        lambda: device.config_changed(),
        lambda: device.take(0),
        lambda: device.asyncio_loop,
    ):
        with pytest.raises(RuntimeError, match="in a worker only"):
            call()
