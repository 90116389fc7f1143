"""The dirty log: which are refused, when workers write to one, and what survives what."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vhost_user.dialogue import (
    FEATURES,
    OFFER,
    PROTOCOL_FEATURES,
    Dialogue,
    Outcome,
    P,
    eventfd,
    kinds,
    memory,
    stream,
)
from vuproc.fd import Fd
from vuproc.spec.vhost_user import LOG, U64, VRING_ADDR_F_LOG
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.effects import EffectFailed, LogUsedRing, SetLog, StartRing
from vuproc.vhost_user.replay import replay
from vuproc.vhost_user.session import Session

PLAIN = FEATURES & ~Feature.LOG_ALL
LOG_BYTES = 0x2000


def give(
    dialogue: Dialogue, fd: Fd | None = None, *, size: int = LOG_BYTES, offset: int = 0
) -> Outcome:
    """SET_LOG_BASE with a file that the log fills."""
    file = memory(offset + size) if fd is None else fd
    return dialogue.tell("SET_LOG_BASE", [file], mmap_size=size, mmap_offset=offset)


def begun(dialogue: Dialogue) -> SetLog:
    """A log, and the feature; what workers are told."""
    assert give(dialogue).ok
    (effect,) = dialogue.tell("SET_FEATURES", value=FEATURES).effects
    assert isinstance(effect, SetLog)
    return effect


def running() -> Dialogue:
    dialogue = Dialogue()
    dialogue.tell("SET_FEATURES", value=PLAIN)
    dialogue.remember()
    assert dialogue.start(0).ok and dialogue.start(1).ok
    return dialogue


# ---- when workers write to it --------------------------------------------------------------------


def test_logging_begins_when_both_the_log_and_the_feature_are_there() -> None:
    with running() as dialogue:
        outcome = give(dialogue, size=LOG_BYTES, offset=24)
        assert outcome.effects == () and outcome.payload == LOG.pack(
            mmap_size=LOG_BYTES, mmap_offset=24
        )
        effects = dialogue.tell("SET_FEATURES", value=FEATURES).effects
        area = dialogue.state.log
        assert effects == (SetLog(area),) and area is not None
        assert (area.offset, area.size) == (24, LOG_BYTES)


def test_the_order_does_not_matter() -> None:
    with running() as dialogue:
        assert dialogue.tell("SET_FEATURES", value=FEATURES).effects == ()
        assert give(dialogue).effects == (SetLog(dialogue.state.log),)


def test_the_feature_is_withdrawn_and_comes_again() -> None:
    with running() as dialogue:
        first = begun(dialogue)
        assert dialogue.tell("SET_FEATURES", value=FEATURES).effects == ()
        assert dialogue.tell("SET_FEATURES", value=PLAIN).effects == (SetLog(None),)
        assert dialogue.tell("SET_FEATURES", value=FEATURES).effects == (first,)


def test_another_log_takes_the_place_of_the_first_which_is_closed() -> None:
    with running() as dialogue:
        first = begun(dialogue).area
        assert first is not None
        (effect,) = give(dialogue, size=2 * LOG_BYTES).effects
        assert isinstance(effect, SetLog) and effect.area is not None
        assert effect.area.size == 2 * LOG_BYTES and first.fd.closed


def test_a_log_that_workers_did_not_take_is_none() -> None:
    with running() as dialogue:
        kept = begun(dialogue)
        dialogue.result = lambda effect: EffectFailed("as the test wants it")
        fresh = memory(LOG_BYTES)
        assert give(dialogue, fresh).closed is not None
        assert fresh.closed and dialogue.state.logging == kept


def test_who_is_to_hear_of_marks_comes_before_the_log_or_later() -> None:
    with running() as dialogue:
        call = eventfd()
        assert dialogue.tell("SET_LOG_FD", [call]).effects == ()
        assert begun(dialogue).call is call
        other = eventfd()
        (effect,) = dialogue.tell("SET_LOG_FD", [other]).effects
        assert effect == SetLog(dialogue.state.log, other) and call.closed


def test_rings_that_start_later_know_where_their_used_ring_is_logged() -> None:
    with running() as dialogue:
        begun(dialogue)
        dialogue.tell("SET_VRING_NUM", index=2, num=128)
        dialogue.tell("SET_VRING_BASE", index=2, num=0)
        assert dialogue.address(2, flags=VRING_ADDR_F_LOG, log=0x5000).effects == ()
        (start,) = dialogue.tell("SET_VRING_KICK", [eventfd()], value=2).effects
        assert isinstance(start, StartRing) and start.setup.used_log == 0x5000


@pytest.mark.parametrize(
    ("reset", "payload"), [("SET_STATUS", U64.pack(value=0)), ("RESET_DEVICE", b"")]
)
def test_a_reset_ends_it_after_the_rings_and_keeps_the_log_for_later(
    reset: str, payload: bytes
) -> None:
    with running() as dialogue:
        kept = begun(dialogue)
        outcome = dialogue.tell(reset, payload=payload)
        assert kinds(outcome.effects) == ["StopRing", "StopRing", "SetLog", "ResetDevice"]
        assert outcome.effects[2] == SetLog(None)
        assert dialogue.tell("SET_FEATURES", value=FEATURES).effects[-1] == kept


def test_the_stop_of_all_rings_leaves_the_log_where_it_is() -> None:
    with running() as dialogue:
        begun(dialogue)
        for index in (0, 1):
            outcome = dialogue.tell("GET_VRING_BASE", index=index)
            assert kinds(outcome.effects) == ["StopRing"]
        assert dialogue.state.logging.area is not None


def test_memory_that_comes_while_writes_are_logged_changes_nothing_of_that() -> None:
    with running() as dialogue:
        begun(dialogue)
        added = dialogue.tell("ADD_MEM_REG", [memory(0x10000)], **dialogue.region(64))
        assert kinds(added.effects) == ["AddRegion"]
        assert kinds(dialogue.remember().effects) == ["SetMemory"]
        assert dialogue.state.logging.area is not None


# ---- what survives -------------------------------------------------------------------------------


def test_a_fresh_worker_hears_of_the_log_before_its_rings() -> None:
    with running() as dialogue:
        order = begun(dialogue)
        dialogue.address(1, flags=VRING_ADDR_F_LOG, log=0x7000)
        features, table, log, first, second = replay(dialogue.state)
        assert log == order and kinds([features, table]) == ["SetFeatures", "SetMemory"]
        assert isinstance(first, StartRing) and first.setup.used_log is None
        assert isinstance(second, StartRing) and second.setup.used_log == 0x7000
        dialogue.tell("SET_FEATURES", value=PLAIN)
        assert "SetLog" not in kinds(list(replay(dialogue.state)))


def test_a_fresh_master_goes_on_with_the_log() -> None:
    with running() as dialogue:
        dialogue.tell("SET_LOG_FD", [eventfd()])
        order = begun(dialogue)
        session = Session.restore(OFFER, dialogue.session.snapshot())
        assert session.state.logging == order and session.state == dialogue.state
        assert {"log", "logcall"} <= set(session.state.roles().values())


# ---- what is refused -----------------------------------------------------------------------------


def a_file_for_reading() -> Fd:
    path = Path("/proc/self/exe")
    return Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


@pytest.mark.parametrize("make", [eventfd, stream, a_file_for_reading])
def test_a32_a_log_that_is_no_file_to_write_to(make: Callable[[], Fd]) -> None:
    with running() as dialogue:
        outcome = give(dialogue, make(), size=8)
        assert outcome.effects == () and outcome.closed is not None
        assert dialogue.state.log is None


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        (0, 0),
        (LOG_BYTES + 1, 0),
        (LOG_BYTES, 1),
        (1, LOG_BYTES),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 8, 16),
        (8, (1 << 64) - 1),
    ],
)
def test_a32_a_log_that_its_file_does_not_hold(size: int, offset: int) -> None:
    with running() as dialogue:
        file = memory(LOG_BYTES)
        outcome = give(dialogue, file, size=size, offset=offset)
        assert outcome.effects == () and outcome.closed is not None
        assert file.closed and dialogue.state.log is None


def test_a_log_without_its_descriptor() -> None:
    with running() as dialogue:
        outcome = dialogue.tell("SET_LOG_BASE", mmap_size=LOG_BYTES, mmap_offset=0)
        assert outcome.closed is not None and "no descriptor" in outcome.closed


@pytest.mark.parametrize("shared", [False, True])
def test_a_log_that_is_an_address_in_the_front_end(shared: bool) -> None:
    protocol = PROTOCOL_FEATURES if shared else PROTOCOL_FEATURES & ~P.LOG_SHMFD
    with Dialogue(protocol=protocol) as dialogue:
        outcome = dialogue.tell("SET_LOG_BASE", payload=U64.pack(value=0x7F00_0000_0000))
        # Only the reply with a descriptor has no form that says "failed".
        assert outcome.failed != shared and dialogue.state.log is None
        assert (outcome.closed is not None) == shared


def test_who_is_to_hear_of_marks_is_something_to_signal() -> None:
    with running() as dialogue:
        assert dialogue.tell("SET_LOG_FD", [memory()]).failed
        assert dialogue.state.log_call is None


@pytest.mark.parametrize("log", [(1 << 64) - 1, (1 << 64) - (6 + 8 * 128) + 1])
def test_a_used_ring_whose_log_address_wraps_around(log: int) -> None:
    with running() as dialogue:
        assert dialogue.address(0, flags=VRING_ADDR_F_LOG, log=log).failed
        # Without the flag nobody looks at the address.
        assert dialogue.address(0, flags=0, log=log).ok
        last = (1 << 64) - (6 + 8 * 128)
        outcome = dialogue.address(0, flags=VRING_ADDR_F_LOG, log=last)
        assert outcome.effects == (LogUsedRing(0, last),)
