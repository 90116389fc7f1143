"""In-band notifications: bells stand for the descriptors that a front-end does not send."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from tests.vhost_user.dialogue import (
    OFFER,
    PROTOCOL_FEATURES,
    Dialogue,
    copied,
    eventfd,
    kinds,
)
from vuproc.fd import Fd
from vuproc.spec.vhost_user import VRING_NO_FD, ProtocolFeature
from vuproc.vhost_user.effects import (
    Bells,
    EffectFailed,
    KickRing,
    SetCall,
    SetKick,
    StartRing,
)
from vuproc.vhost_user.session import Session

INBAND = PROTOCOL_FEATURES | ProtocolFeature.INBAND_NOTIFICATIONS
INBAND_OFFER = replace(OFFER, protocol_features=INBAND)


class InbandDialogue(Dialogue):
    """One in which in-band notifications are negotiated."""

    def __init__(self) -> None:
        super().__init__(INBAND_OFFER, protocol=INBAND)

    def __enter__(self) -> InbandDialogue:
        return self

    def place(self, index: int = 0) -> None:
        """All that User-Mode Linux says of a ring before it enables it."""
        assert self.tell("SET_VRING_NUM", index=index, num=128).ok
        assert self.tell("SET_VRING_BASE", index=index, num=0).ok
        assert self.address(index).ok

    def bells(self, index: int = 0) -> Bells:
        bells = self.state.rings[index].bells
        assert bells is not None
        return bells


@pytest.fixture
def dialogue() -> Iterator[InbandDialogue]:
    with InbandDialogue() as dialogue:
        assert dialogue.remember().ok
        yield dialogue


def test_a_ring_without_descriptors_is_started_when_it_is_enabled_and_has_bells(
    dialogue: InbandDialogue,
) -> None:
    dialogue.place()
    (start,) = dialogue.tell("SET_VRING_ENABLE", index=0, num=1).effects
    assert isinstance(start, StartRing)
    assert (start.setup.kick, start.setup.call) == (dialogue.bells().kick, dialogue.bells().call)
    assert start.setup.err is None


def test_a_kick_is_for_the_bell_of_its_ring(dialogue: InbandDialogue) -> None:
    for index in (0, 1):
        dialogue.place(index)
        dialogue.tell("SET_VRING_ENABLE", index=index, num=1)
    outcome = dialogue.tell("VRING_KICK", index=1, num=0)
    assert outcome.ok
    assert outcome.effects == (KickRing(1, dialogue.bells(1).kick),)


def test_an_enabled_ring_may_be_started_by_a_kick(dialogue: InbandDialogue) -> None:
    """As one is that was enabled from the first, by SET_FEATURES without bit 30."""
    assert dialogue.tell("SET_FEATURES", value=1 << 32).ok
    dialogue.place()
    assert not dialogue.state.rings[0].started
    assert kinds(dialogue.tell("VRING_KICK", index=0, num=0).effects) == ["StartRing"]


def test_a47_a_late_kick_does_not_run_a_stopped_ring_again(dialogue: InbandDialogue) -> None:
    dialogue.place()
    dialogue.tell("SET_VRING_ENABLE", index=0, num=1)
    dialogue.tell("SET_VRING_ENABLE", index=0, num=0)
    assert dialogue.tell("GET_VRING_BASE", index=0, num=0).ok
    outcome = dialogue.tell("VRING_KICK", index=0, num=0)
    assert outcome.ok and not outcome.effects
    assert not dialogue.state.rings[0].started
    assert kinds(dialogue.tell("SET_VRING_ENABLE", index=0, num=1).effects) == ["StartRing"]


def test_descriptors_that_come_are_preferred_until_the_ring_stops(
    dialogue: InbandDialogue,
) -> None:
    dialogue.place()
    dialogue.tell("SET_VRING_ENABLE", index=0, num=1)
    kick, call = eventfd(), eventfd()
    assert dialogue.tell("SET_VRING_KICK", [kick], value=0).effects == (SetKick(0, kick),)
    assert dialogue.tell("SET_VRING_CALL", [call], value=0).effects == (SetCall(0, call),)
    assert dialogue.tell("VRING_KICK", index=0, num=0).effects == (KickRing(0, kick),)
    assert dialogue.tell("GET_VRING_BASE", index=0, num=0).ok
    (start,) = dialogue.tell("SET_VRING_ENABLE", index=0, num=1).effects
    assert isinstance(start, StartRing)
    assert (start.setup.kick, start.setup.call) == (dialogue.bells().kick, dialogue.bells().call)


def test_a_message_that_there_is_no_descriptor_means_polling(dialogue: InbandDialogue) -> None:
    dialogue.place()
    dialogue.tell("SET_VRING_ENABLE", index=0, num=1)
    outcome = dialogue.tell("SET_VRING_KICK", value=VRING_NO_FD)
    assert outcome.effects == (SetKick(0, None),)
    assert dialogue.tell("SET_VRING_CALL", value=VRING_NO_FD).effects == (SetCall(0, None),)
    assert dialogue.tell("VRING_KICK", index=0, num=0).effects == ()
    setup = dialogue.state.rings[0].setup()
    assert (setup.kick, setup.call) == (None, None)


@pytest.mark.parametrize(
    ("index", "num", "reason"), [(4, 0, "out of range"), (0, 1, "num is reserved")]
)
def test_a47_a_kick_out_of_range_or_with_a_num_is_refused(
    dialogue: InbandDialogue, index: int, num: int, reason: str
) -> None:
    outcome = dialogue.tell("VRING_KICK", index=index, num=num)
    assert outcome.failed
    assert reason in str(outcome.refused)


def test_a_kick_before_the_negotiation_is_refused() -> None:
    with Dialogue(INBAND_OFFER) as dialogue:
        outcome = dialogue.tell("VRING_KICK", index=0, num=0)
        assert outcome.failed
        assert "INBAND_NOTIFICATIONS" in str(outcome.refused)


def test_bells_outlive_a_reset_and_go_with_the_feature(dialogue: InbandDialogue) -> None:
    dialogue.place()
    dialogue.tell("SET_VRING_ENABLE", index=0, num=1)
    bells = dialogue.bells()
    refused = dialogue.tell("SET_PROTOCOL_FEATURES", value=PROTOCOL_FEATURES)
    assert refused.failed and "while rings run" in str(refused.refused)
    assert dialogue.tell("RESET_DEVICE").ok
    assert dialogue.bells() is bells
    assert dialogue.tell("SET_PROTOCOL_FEATURES", value=INBAND).effects == ()
    assert dialogue.tell("SET_PROTOCOL_FEATURES", value=PROTOCOL_FEATURES).ok
    assert dialogue.state.rings[0].bells is None
    assert bells.kick.closed and bells.call.closed


def test_bells_that_cannot_be_made_fail_the_negotiation() -> None:
    with Dialogue(INBAND_OFFER) as dialogue:
        dialogue.result = lambda effect: EffectFailed("too many open files")
        assert dialogue.tell("SET_PROTOCOL_FEATURES", value=INBAND).failed
        assert dialogue.state.protocol_features == PROTOCOL_FEATURES


def test_bells_go_to_a_successor_by_name(dialogue: InbandDialogue) -> None:
    dialogue.place()
    dialogue.tell("SET_VRING_ENABLE", index=0, num=1)
    copies = copied(dialogue.session.snapshot())
    later = Session.restore(INBAND_OFFER, copies)
    try:
        setup = later.state.rings[0].setup()
        assert setup.kick is not None and setup.call is not None
        assert same_eventfd(setup.kick, dialogue.bells().kick)
        assert same_eventfd(setup.call, dialogue.bells().call)
    finally:
        later.release()


def same_eventfd(one: Fd, other: Fd) -> bool:
    os.eventfd_write(one.fileno(), 7)
    return os.eventfd_read(other.fileno()) == 7
