"""Catalogue row A43: device state by descriptors, states and front-ends that make no sense."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.conformance.checks import attached, spare_fd
from tests.conformance.conftest import Footprint
from tests.devices.stateful import Notes
from vuproc.fd import Fd
from vuproc.spec.vhost_user import STATE_FD_ERROR, STATE_FD_NO_FD, StateDirection
from vuproc.testing import Guest, Refused, Served, device_state, serve
from vuproc.workers.state_bytes import ALL_MAX, kind_of, pack

SAVE, LOAD = StateDirection.SAVE, StateDirection.LOAD
REFUSED = STATE_FD_NO_FD | STATE_FD_ERROR
STATE = pack(kind_of(Notes()), b"said before")
MIB = 1 << 20

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def notes_process() -> Iterator[Served]:
    with serve(Notes) as served:
        yield served


@pytest.fixture
def suspended(notes_process: Served) -> Iterator[Guest]:
    """A front-end whose device was told something and stopped.

    Afterwards a state can be moved still, and the processes hold what they held.
    """
    before = Footprint.of(notes_process)
    with notes_process.guest(queues=2) as guest:
        guest.do(out=[b"said before"])
        guest.stop_queue(0)
        guest.stop_queue(1)
        yield guest
        assert guest.front_end.save_state() == STATE
    assert Footprint.of(notes_process) == before


def a_file() -> Fd:
    return Fd(os.memfd_create("state", os.MFD_CLOEXEC))


def an_eventfd() -> Fd:
    return Fd(os.eventfd(0, os.EFD_CLOEXEC))


@pytest.mark.parametrize("make", [spare_fd, a_file, an_eventfd])
@pytest.mark.parametrize("direction", [SAVE, LOAD])
def test_a43_what_is_no_pipe(
    suspended: Guest, direction: StateDirection, make: Callable[[], Fd]
) -> None:
    with attached([make()]) as (fd,), pytest.raises(Refused) as caught:
        device_state.send(suspended.front_end, fd, direction)
    assert caught.value.code == REFUSED


def test_a43_another_direction_or_phase(suspended: Guest) -> None:
    reads, writes = map(Fd, os.pipe2(os.O_CLOEXEC))
    with reads, writes:
        for direction, phase in ((2, 0), (0xFFFFFFFF, 0), (SAVE, 1)):
            with pytest.raises(Refused) as caught:
                device_state.send(suspended.front_end, writes, direction, phase=phase)
            assert caught.value.code == REFUSED


def test_a43_a_device_that_is_not_suspended(suspended: Guest) -> None:
    suspended.start_queue(1)
    with pytest.raises(Refused) as caught:
        suspended.front_end.save_state()
    assert caught.value.code == REFUSED
    suspended.stop_queue(1)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"V",
        bytes(4096),
        STATE[:-1],
        STATE + b"!",
        STATE[:12] + bytes(len(STATE) - 12),
        STATE.replace(b"Notes", b"Other"),
        os.urandom(MIB),
    ],
    ids=["nothing", "a byte", "zeros", "short", "long", "no header", "another's", "noise"],
)
def test_a43_a_state_that_is_none(suspended: Guest, state: bytes) -> None:
    with pytest.raises(Refused, match="CHECK_DEVICE_STATE was refused with code 1"):
        suspended.front_end.load_state(state)


def test_a43_more_than_any_state_is(suspended: Guest) -> None:
    with pytest.raises(Refused, match="CHECK_DEVICE_STATE"):
        suspended.front_end.load_state(bytes(ALL_MAX + MIB))


@pytest.mark.parametrize("direction", [SAVE, LOAD])
def test_a43_asked_before_the_end(suspended: Guest, direction: StateDirection) -> None:
    """Whoever asks has nothing left to read or to write: it is not waited for."""
    suspended.start_queue(0)
    suspended.do(out=[b"large"])
    suspended.stop_queue(0)
    with device_state.begin(suspended.front_end, direction):
        with pytest.raises(Refused, match="CHECK_DEVICE_STATE was refused with code 1"):
            device_state.check(suspended.front_end)
    suspended.front_end.load_state(STATE)


def test_a43_nobody_reads_and_a_ring_starts(suspended: Guest) -> None:
    for direction in (SAVE, LOAD):
        with device_state.begin(suspended.front_end, direction):
            suspended.start_queue(0)
            assert suspended.do(in_=[11]).content == b"said before"
            with pytest.raises(Refused, match="CHECK_DEVICE_STATE"):
                device_state.check(suspended.front_end)
            suspended.stop_queue(0)


def test_a43_transfer_upon_transfer(suspended: Guest) -> None:
    pipes = [device_state.begin(suspended.front_end, LOAD) for _ in range(100)]
    with attached(pipes):
        with pytest.raises(BrokenPipeError):
            os.write(pipes[0].fileno(), b"to nobody")
        os.write(pipes[-1].fileno(), STATE)
    device_state.check(suspended.front_end)
