"""The device's own state: when it may be moved, by which descriptor, and what ends that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from tests.vhost_user.dialogue import (
    FEATURES,
    OFFER,
    PROTOCOL_FEATURES,
    Dialogue,
    Outcome,
    P,
    copied,
    eventfd,
    kinds,
    memory,
    stream,
)
from vuproc.fd import Fd
from vuproc.spec.vhost_user import U64
from vuproc.vhost_user.effects import EffectFailed, LoadState, ResetDevice, SaveState
from vuproc.vhost_user.session import Session

SAVE, LOAD = 0, 1
TAKEN, FAILED = U64.pack(value=0x100), U64.pack(value=0x101)
PROTOCOL = PROTOCOL_FEATURES | P.DEVICE_STATE
KEEPS = replace(OFFER, protocol_features=int(PROTOCOL))


def pipe() -> tuple[Fd, Fd]:
    """What is read from, and what is written to."""
    reads, writes = os.pipe2(os.O_CLOEXEC)
    return Fd(reads), Fd(writes)


def reads() -> Fd:
    found, other = pipe()
    other.close()
    return found


def writes() -> Fd:
    other, found = pipe()
    other.close()
    return found


@pytest.fixture
def dialogue() -> Iterator[Dialogue]:
    """One with a ring that could be started, and none that is."""
    with Dialogue(KEEPS, protocol=PROTOCOL) as dialogue:
        dialogue.tell("SET_FEATURES", value=FEATURES)
        dialogue.remember()
        yield dialogue


def begin(dialogue: Dialogue, direction: int, fd: Fd, phase: int = 0) -> Outcome:
    return dialogue.tell("SET_DEVICE_STATE_FD", [fd], direction=direction, phase=phase)


def check(dialogue: Dialogue) -> Outcome:
    return dialogue.tell("CHECK_DEVICE_STATE")


def test_a_state_is_saved_through_a_pipe_that_the_session_does_not_keep(dialogue: Dialogue) -> None:
    end = writes()
    outcome = begin(dialogue, SAVE, end)
    assert outcome.payload == TAKEN and outcome.reply_sizes == ()
    assert outcome.effects == (SaveState(end),) and end.closed
    outcome = check(dialogue)
    assert kinds(outcome.effects) == ["CheckTransfer"] and outcome.payload == U64.pack()


def test_a_state_is_loaded_likewise(dialogue: Dialogue) -> None:
    end = reads()
    assert begin(dialogue, LOAD, end).effects == (LoadState(end),) and end.closed
    assert check(dialogue).payload == U64.pack()


def test_without_its_feature_it_is_refused() -> None:
    with Dialogue(KEEPS) as dialogue:
        assert begin(dialogue, SAVE, writes()).refused == "DEVICE_STATE was not negotiated"
        assert check(dialogue).refused == "DEVICE_STATE was not negotiated"


@pytest.mark.parametrize("direction", [2, 0xFFFFFFFF])
def test_a43_no_such_direction(dialogue: Dialogue, direction: int) -> None:
    refused(dialogue, begin(dialogue, direction, writes()))


def test_a43_no_such_phase(dialogue: Dialogue) -> None:
    refused(dialogue, begin(dialogue, SAVE, writes(), phase=1))


def test_a43_the_wrong_end(dialogue: Dialogue) -> None:
    refused(dialogue, begin(dialogue, SAVE, reads()))
    refused(dialogue, begin(dialogue, LOAD, writes()))


@pytest.mark.parametrize("make", [eventfd, memory, stream])
def test_a43_no_pipe(dialogue: Dialogue, make: Callable[[], Fd]) -> None:
    refused(dialogue, begin(dialogue, SAVE, make()))
    refused(dialogue, begin(dialogue, LOAD, make()))


def test_a43_no_descriptor_or_two(dialogue: Dialogue) -> None:
    refused(dialogue, dialogue.tell("SET_DEVICE_STATE_FD", direction=SAVE, phase=0))
    two = [writes(), writes()]
    refused(dialogue, dialogue.tell("SET_DEVICE_STATE_FD", two, direction=SAVE, phase=0))
    assert all(fd.closed for fd in two)


def refused(dialogue: Dialogue, outcome: Outcome) -> None:
    """With the one code that says so; nothing was begun."""
    assert outcome.failed and outcome.payload == FAILED and outcome.effects == ()
    assert check(dialogue).payload == U64.pack(value=1)


def test_a_device_with_a_ring_that_runs_is_not_suspended(dialogue: Dialogue) -> None:
    assert dialogue.start(2).ok
    outcome = begin(dialogue, SAVE, writes())
    assert outcome.refused == "vring 2 is not stopped" and outcome.payload == FAILED
    dialogue.session.ring_broken(2, "as the test wants it")
    assert begin(dialogue, LOAD, reads()).failed
    assert dialogue.tell("GET_VRING_BASE", index=2, num=0).ok
    assert begin(dialogue, SAVE, writes()).ok


def test_a_ring_that_starts_ends_the_transfer(dialogue: Dialogue) -> None:
    assert begin(dialogue, SAVE, writes()).ok
    assert kinds(dialogue.start(1).effects) == ["StartRing", "EndTransfer"]
    assert kinds(dialogue.start(2).effects) == ["StartRing"]
    assert check(dialogue).failed


def test_one_that_was_checked_is_over_when_a_ring_starts(dialogue: Dialogue) -> None:
    assert begin(dialogue, LOAD, reads()).ok and check(dialogue).ok
    assert kinds(dialogue.start(1).effects) == ["StartRing"]


def test_it_is_asked_once(dialogue: Dialogue) -> None:
    assert check(dialogue).failed
    assert begin(dialogue, SAVE, writes()).ok and check(dialogue).ok
    assert check(dialogue).failed


def test_another_transfer_takes_the_place_of_one_that_was_not_checked(dialogue: Dialogue) -> None:
    assert begin(dialogue, SAVE, writes()).ok and begin(dialogue, LOAD, reads()).ok
    assert check(dialogue).ok and check(dialogue).failed


def test_a_device_that_gives_no_state_or_takes_none(dialogue: Dialogue) -> None:
    dialogue.result = lambda effect: EffectFailed("as the test wants it")
    end = writes()
    outcome = begin(dialogue, SAVE, end)
    assert outcome.payload == FAILED and outcome.refused == "as the test wants it" and end.closed
    dialogue.result = dialogue.perform
    assert begin(dialogue, LOAD, reads()).ok
    dialogue.result = lambda effect: EffectFailed("as the test wants it")
    outcome = check(dialogue)
    assert outcome.payload == U64.pack(value=1) and outcome.refused == "as the test wants it"


def test_resets(dialogue: Dialogue) -> None:
    """QEMU stops a device by status 0, and asks for its state after that."""
    assert begin(dialogue, SAVE, writes()).ok
    assert dialogue.tell("SET_STATUS", value=0).effects == (ResetDevice(keeps_state=True),)
    assert check(dialogue).ok
    assert begin(dialogue, SAVE, writes()).ok
    assert dialogue.tell("RESET_DEVICE").effects == (ResetDevice(),)
    assert check(dialogue).failed


@pytest.mark.parametrize("missing", [P.RESET_DEVICE, P.DEVICE_STATE])
def test_a_status_of_0_is_a_reset_for_who_cannot_say_it_otherwise(missing: P) -> None:
    with Dialogue(KEEPS, protocol=PROTOCOL & ~missing) as dialogue:
        assert dialogue.tell("SET_STATUS", value=0).effects == (ResetDevice(),)


def test_a_successor_knows_that_there_was_a_transfer(dialogue: Dialogue) -> None:
    assert begin(dialogue, SAVE, writes()).ok
    copies = copied(dialogue.session.snapshot())
    other = Session.restore(KEEPS, copies)
    try:
        assert other.state.transferring
    finally:
        other.release()
