"""Devices that keep a driver's buffers: given back at a stop, not lost by a death, or pulled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.devices.holding import RX, TX, Keeps, Pulls
from vuproc.testing import Guest, Served, serve
from vuproc.testing.bell import Bell
from vuproc.testing.memory import RamRegion

HELD = 120
SIZE = 64


@pytest.fixture(scope="module")
def keeps() -> Iterator[Served]:
    with serve(Keeps) as served:
        yield served


@pytest.fixture(scope="module")
def pulls() -> Iterator[Served]:
    with serve(Pulls) as served:
        yield served


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    """The layout of the guest's rings."""
    return bool(request.param)


def holding(served: Served, packed: bool) -> Guest:
    """A guest whose device holds `HELD` buffers."""
    guest = served.guest(queues=2, packed=packed)
    guest.keep_filled(RX, count=HELD, size=SIZE)
    assert echoed(guest, b"first") == b"first"
    assert held(guest) == HELD
    return guest


def echoed(guest: Guest, word: bytes) -> bytes:
    guest.do(TX, [word], [SIZE])
    return guest.receive(RX)


def held(guest: Guest) -> int:
    return int(guest.do(TX, [b"count"], [SIZE]).content.rstrip(b"\0"))


def stop_and_start(guest: Guest) -> None:
    queue = guest.queues[RX]
    guest.stop_queue(RX)
    # A stop takes the call descriptor away.
    guest.front_end.request("SET_VRING_CALL", [queue.call_bell.theirs], value=RX)
    guest.kick_queue(queue)


def reset(guest: Guest) -> None:
    guest.front_end.request("RESET_DEVICE")
    guest.queues[RX].close()


def other_memory(guest: Guest) -> None:
    region = RamRegion(1 << 40, 1 << 20)
    guest.front_end.set_memory([*guest.ram.regions, region])
    guest.front_end.set_memory(guest.ram.regions)
    region.close()


def removed_memory(guest: Guest) -> None:
    region = RamRegion(1 << 40, 1 << 20)
    guest.front_end.add_region(region)
    guest.front_end.remove_region(region)
    region.close()


def disable_and_enable(guest: Guest) -> None:
    guest.enable_queue(RX, False)
    guest.enable_queue(RX, True)


CHANGES = [stop_and_start, other_memory, removed_memory, disable_and_enable]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_held_buffers_are_given_back_and_come_again(
    keeps: Served, packed: bool, change: Callable[[Guest], None]
) -> None:
    with holding(keeps, packed) as guest:
        pid, after = keeps.status().queues[RX].pid, len(keeps.lines)
        for turn in range(3):
            change(guest)
            assert held(guest) == HELD
            word = b"turn %d" % turn
            assert echoed(guest, word) == word
        assert keeps.status().queues[RX].pid == pid
        assert not [line for line in keeps.lines[after:] if "killed" in line or "ended" in line]


def test_buffers_that_were_used_out_of_order_are_given_back_too(
    keeps: Served, packed: bool
) -> None:
    with holding(keeps, packed) as guest:
        for turn in range(3):
            assert echoed(guest, b"skip%d" % (10 * turn + 3)).startswith(b"skip")
            stop_and_start(guest)
            assert held(guest) == HELD
        # Every buffer is there once: all of them are used.
        for number in range(2 * HELD):
            word = b"%d" % number
            assert echoed(guest, word) == word


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_buffer_is_lost_by_a_worker_that_is_killed_at_it(
    keeps: Served, packed: bool, change: Callable[[Guest], None]
) -> None:
    with holding(keeps, packed) as guest:
        for _ in range(3):
            pid = keeps.kill_worker(RX)
            change(guest)
            keeps.wait_worker(RX, other_than=pid)
            assert held(guest) == HELD
            assert echoed(guest, b"after") == b"after"


def test_the_end_of_a_session_kills_no_worker(keeps: Served, packed: bool) -> None:
    with holding(keeps, packed):
        pid, after = keeps.status().queues[RX].pid, len(keeps.lines)
    keeps.wait_for_line("disconnected", after=after)
    with holding(keeps, packed) as guest:
        assert keeps.status().queues[RX].pid == pid
        reset(guest)
        assert keeps.status().queues[RX].pid == pid


def test_a_rolling_restart_loses_no_buffer_and_kills_no_worker(packed: bool) -> None:
    with serve(Keeps) as served, holding(served, packed) as guest:
        pid = served.status().queues[RX].pid
        assert pid is not None
        served.reload()
        assert served.status().queues[RX].pid == pid  # nothing has changed in the file
        assert held(guest) == HELD


def test_a_device_that_pulls_takes_what_it_needs_and_no_more(pulls: Served, packed: bool) -> None:
    with pulls.guest(queues=2, packed=packed) as guest:
        # Packets before there is a buffer wait in the device.
        for number in range(3):
            guest.do(TX, [b"early %d" % number], [SIZE])
        guest.keep_filled(RX, count=HELD, size=SIZE)
        assert [guest.receive(RX) for _ in range(3)] == [b"early %d" % n for n in range(3)]
        before = int(guest.do(TX, [b"told"], [SIZE]).content.rstrip(b"\0"))
        for number in range(50):
            word = b"packet %d" % number
            assert echoed(guest, word) == word
        # It was not told of buffers that it had left.
        after = int(guest.do(TX, [b"told"], [SIZE]).content.rstrip(b"\0"))
        assert after - before <= 1
        stop_and_start(guest)
        assert echoed(guest, b"again") == b"again"


def test_a_pulling_device_loses_no_buffer_by_a_death(pulls: Served, packed: bool) -> None:
    with pulls.guest(queues=2, packed=packed) as guest:
        guest.keep_filled(RX, count=HELD, size=SIZE)
        for number in range(3):
            pid = pulls.kill_worker(RX)
            word = b"%d" % number
            assert echoed(guest, word) == word
            pulls.wait_worker(RX, other_than=pid)
        for number in range(2 * HELD):
            word = b"then %d" % number
            assert echoed(guest, word) == word


def test_a_driver_is_called_after_a_death_whatever_waits(pulls: Served, packed: bool) -> None:
    """The call for what a dead worker has completed may have died with it."""
    with pulls.guest(queues=2, packed=packed) as guest:
        guest.keep_filled(RX, count=HELD, size=SIZE)
        assert echoed(guest, b"first") == b"first"
        bells = [guest.queues[queue].call_bell for queue in (RX, TX)]
        for bell in bells:
            assert isinstance(bell, Bell)
            while bell.wait(0.0):
                pass
        pulls.wait_worker(other_than=pulls.kill_worker())
        assert all(isinstance(bell, Bell) and bell.wait(20.0) for bell in bells)
