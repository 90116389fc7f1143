"""Features, owner, acknowledgements, and what becomes of messages that may not be."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.vhost_user.dialogue import (
    FEATURES,
    OFFER,
    PROTOCOL_FEATURES,
    Dialogue,
    eventfd,
    kinds,
    stream,
)
from vuproc.spec.vhost_user import FRONT_END, ProtocolFeature, Reply
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.effects import SetBackendChannel, SetFeatures
from vuproc.vhost_user.handlers import HANDLERS

UNSUPPORTED = [row.name for row in FRONT_END if row.request not in HANDLERS]


def test_get_features_answers_at_any_time() -> None:
    with Dialogue(protocol=0) as dialogue:
        for need_reply in (True, False):
            outcome = dialogue.tell("GET_FEATURES", need_reply=need_reply)
            assert outcome.fields == {"value": FEATURES}


def test_protocol_features_are_told_and_taken_without_a_get_before() -> None:
    with Dialogue(protocol=0) as dialogue:
        assert dialogue.tell("SET_PROTOCOL_FEATURES", value=PROTOCOL_FEATURES).ok
        assert dialogue.tell("GET_PROTOCOL_FEATURES").fields == {"value": PROTOCOL_FEATURES}


def test_features_reach_the_workers_once_a_change() -> None:
    with Dialogue() as dialogue:
        plain = FEATURES & ~Feature.LOG_ALL
        assert dialogue.tell("SET_FEATURES", value=FEATURES).effects == (SetFeatures(plain),)
        # QEMU sends them twice.
        assert dialogue.tell("SET_FEATURES", value=FEATURES).effects == ()


def test_a_front_end_may_leave_every_feature_out() -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_FEATURES", value=0).ok


@pytest.mark.parametrize("bit", [0, 24, 34, 63])
def test_a10_features_that_were_not_offered_are_refused(bit: int) -> None:
    with Dialogue() as dialogue:
        before = dialogue.state
        assert dialogue.tell("SET_FEATURES", value=FEATURES | 1 << bit).failed
        assert dialogue.state is before


def test_a11_features_change_while_rings_run_only_in_logging() -> None:
    with Dialogue() as dialogue:
        plain = FEATURES & ~Feature.LOG_ALL
        dialogue.tell("SET_FEATURES", value=plain)
        dialogue.remember()
        assert dialogue.start().ok
        assert dialogue.tell("SET_FEATURES", value=plain & ~Feature.EVENT_IDX).failed
        assert dialogue.tell("SET_FEATURES", value=plain).effects == ()
        # There is no log, so there is nothing for workers to do.
        logging = dialogue.tell("SET_FEATURES", value=FEATURES)
        assert logging.ok and logging.effects == ()
        assert dialogue.state.rings[0].started


def test_without_bit_30_all_rings_are_enabled() -> None:
    with Dialogue() as dialogue:
        dialogue.tell("SET_FEATURES", value=FEATURES)
        assert not any(ring.enabled for ring in dialogue.state.rings)
        dialogue.tell("SET_FEATURES", value=FEATURES & ~Feature.PROTOCOL_FEATURES)
        assert all(ring.enabled for ring in dialogue.state.rings)


def test_protocol_features_that_were_not_offered_are_refused() -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.tell(
            "SET_PROTOCOL_FEATURES", value=PROTOCOL_FEATURES | ProtocolFeature.PAGEFAULT
        )
        assert outcome.failed
        assert "0x100" in str(outcome.refused)


@pytest.mark.parametrize(
    "beside",
    [
        ProtocolFeature(0),
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.REPLY_ACK,
    ],
)
def test_a12_in_band_notifications_alone_end_the_connection(beside: ProtocolFeature) -> None:
    with Dialogue() as dialogue:
        value = ProtocolFeature.INBAND_NOTIFICATIONS | beside
        outcome = dialogue.tell("SET_PROTOCOL_FEATURES", value=value)
        assert "in-band" in str(outcome.closed)


def test_protocol_features_need_bit_30_to_be_offered() -> None:
    offer = replace(OFFER, features=int(Feature.VERSION_1))
    with Dialogue(offer, protocol=0) as dialogue:
        assert "was not offered" in str(dialogue.tell("GET_PROTOCOL_FEATURES").closed)
        assert "was not offered" in str(dialogue.tell("SET_PROTOCOL_FEATURES", value=0).closed)


# ---- owner ---------------------------------------------------------------------------------------


def test_the_owner_is_set_once() -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_OWNER").ok
        assert dialogue.tell("SET_OWNER").failed


def test_a42_reset_owner_stops_and_disables_rings_and_keeps_the_session() -> None:
    with Dialogue() as dialogue:
        dialogue.tell("SET_OWNER")
        dialogue.tell("SET_FEATURES", value=FEATURES)
        dialogue.remember()
        for index in (0, 2):
            dialogue.tell("SET_VRING_ENABLE", index=index, num=1)
            assert dialogue.start(index).ok
        dialogue.positions = {0: 5, 2: 9}
        assert kinds(dialogue.tell("RESET_OWNER").effects) == ["StopRing", "StopRing"]
        state = dialogue.state
        assert state.features == FEATURES
        assert state.protocol_features == PROTOCOL_FEATURES
        assert len(state.regions) == 1
        assert not any(ring.started or ring.enabled for ring in state.rings)
        assert [ring.base for ring in state.rings] == [5, 0, 9, 0]
        assert dialogue.tell("SET_OWNER").ok
        assert dialogue.start(0, base=5).ok
        assert dialogue.session.running() == (0,)


# ---- acknowledgements ----------------------------------------------------------------------------


def test_no_acknowledgement_without_need_reply() -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.tell("SET_OWNER", need_reply=False)
        assert outcome.ok
        assert outcome.payload is None


def test_no_acknowledgement_without_reply_ack() -> None:
    with Dialogue(protocol=0) as dialogue:
        outcome = dialogue.tell("SET_OWNER")
        assert outcome.ok
        assert outcome.payload is None


def test_the_features_after_set_protocol_features_decide_about_its_own_acknowledgement() -> None:
    with Dialogue(protocol=0) as dialogue:
        value = int(ProtocolFeature.REPLY_ACK)
        assert dialogue.tell("SET_PROTOCOL_FEATURES", value=value).fields == {"value": 0}
        assert dialogue.tell("SET_PROTOCOL_FEATURES", value=0).payload is None


def test_a_refused_message_that_cannot_be_reported_ends_the_connection() -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.tell("SET_VRING_NUM", index=0, num=3, need_reply=False)
        assert outcome.closed == "SET_VRING_NUM: ring size 3 is not a power of two"
        assert dialogue.state.rings[0].size == 0


def test_after_a_refusal_the_next_message_is_served() -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_VRING_NUM", index=0, num=3).failed
        assert dialogue.tell("SET_VRING_NUM", index=0, num=4).ok


# ---- what is not allowed -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 46, 1006, 0xFFFFFFFF])
def test_a6_unknown_numbers_are_refused(number: int) -> None:
    with Dialogue() as dialogue:
        outcome = dialogue.deliver(number, b"whatever")
        assert outcome.failed
        assert outcome.refused == "unknown message number"
        assert dialogue.deliver(number, b"", need_reply=False).closed


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a44_messages_that_are_not_served_are_refused_and_say_so(name: str) -> None:
    row = FRONT_END.named(name)
    with Dialogue() as dialogue:
        before = dialogue.state
        size = max((head.size for head in row.payload.heads), default=0)
        fds = [eventfd() for _ in range(row.fds[0])]
        outcome = dialogue.deliver(row.number, bytes(size), fds)
        said = str(outcome.refused or outcome.closed)
        assert f"{name} is not served" in said
        if row.gate.protocol:
            assert f"{row.gate.protocol.name} is not offered" in said
        assert dialogue.state is before
        # A reply of its own leaves the connection up only where it has a form for failure.
        reportable = row.reply is not Reply.OWN or row.error_reply is not None
        assert outcome.failed == reportable


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("SET_BACKEND_REQ_FD", ProtocolFeature.BACKEND_REQ),
        ("SET_CONFIG", ProtocolFeature.CONFIG),
        ("GET_CONFIG", ProtocolFeature.CONFIG),
        ("RESET_DEVICE", ProtocolFeature.RESET_DEVICE),
        ("ADD_MEM_REG", ProtocolFeature.CONFIGURE_MEM_SLOTS),
        ("REM_MEM_REG", ProtocolFeature.CONFIGURE_MEM_SLOTS),
        ("SET_STATUS", ProtocolFeature.STATUS),
    ],
)
def test_a9_messages_of_features_that_were_not_negotiated_are_refused(
    name: str, feature: ProtocolFeature
) -> None:
    row = FRONT_END.named(name)
    with Dialogue(protocol=PROTOCOL_FEATURES & ~feature) as dialogue:
        size = max((head.size for head in row.payload.heads), default=0)
        fds = [eventfd() for _ in range(row.fds[0])]
        outcome = dialogue.deliver(row.number, bytes(size), fds)
        assert outcome.failed
        assert outcome.refused == f"{feature.name} was not negotiated"


@pytest.mark.parametrize("name", ["GET_QUEUE_NUM", "GET_MAX_MEM_SLOTS", "GET_STATUS"])
def test_a9_a_get_that_was_not_negotiated_ends_the_connection(name: str) -> None:
    with Dialogue(protocol=int(ProtocolFeature.REPLY_ACK)) as dialogue:
        assert "was not negotiated" in str(dialogue.tell(name).closed)


def test_gets_answer_what_the_device_offers() -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("GET_QUEUE_NUM").fields == {"value": 4}
        assert dialogue.tell("GET_MAX_MEM_SLOTS").fields == {"value": 509}


SIZED = [row for row in FRONT_END if row.request in HANDLERS]


@pytest.mark.parametrize("name", [row.name for row in SIZED])
def test_a5_payloads_of_the_wrong_size_are_refused(name: str) -> None:
    row = FRONT_END.named(name)
    size = max((head.size for head in row.payload.heads), default=0)
    lengths = [size + 1] if not row.payload.padded else []
    lengths += [size - 1] if size else []
    for length in lengths:
        with Dialogue() as dialogue:
            before = dialogue.state
            fds = [eventfd() for _ in range(row.fds[0])]
            outcome = dialogue.deliver(row.number, bytes(length), fds)
            assert not outcome.ok
            assert outcome.effects == ()
            assert dialogue.state is before


@pytest.mark.parametrize("name", [row.name for row in SIZED if row.fds[1] < 2])
def test_a13_descriptors_too_many_are_closed_and_the_message_refused(name: str) -> None:
    row = FRONT_END.named(name)
    protocol = PROTOCOL_FEATURES | row.gate.protocol
    features = FEATURES | row.gate.offered | row.gate.features
    offer = replace(OFFER, features=features, protocol_features=protocol)
    with Dialogue(offer, protocol=protocol) as dialogue:
        if row.gate.features:
            assert dialogue.tell("SET_FEATURES", value=features).ok
        size = max((head.size for head in row.payload.heads), default=0)
        fds = [eventfd() for _ in range(7)]
        outcome = dialogue.deliver(row.number, bytes(size), fds)
        assert not outcome.ok
        assert "7 descriptors came" in str(outcome.refused or outcome.closed)
        assert all(fd.closed for fd in fds)


def test_a13_a_hundred_messages_with_descriptors_leave_none_open() -> None:
    with Dialogue() as dialogue:
        for _ in range(100):
            fds = [eventfd() for _ in range(7)]
            assert dialogue.tell("SET_FEATURES", fds, value=FEATURES).failed
            assert all(fd.closed for fd in fds)


# ---- the back-end channel ------------------------------------------------------------------------


def test_a38_a_second_back_end_channel_replaces_the_first() -> None:
    with Dialogue() as dialogue:
        first, second = stream(), stream()
        assert dialogue.tell("SET_BACKEND_REQ_FD", [first]).effects == (SetBackendChannel(first),)
        assert dialogue.tell("SET_BACKEND_REQ_FD", [second]).ok
        assert (first.closed, second.closed) == (True, False)
        assert dialogue.state.backend_channel is second


def test_a_back_end_channel_is_a_socket_and_always_comes() -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("SET_BACKEND_REQ_FD", [eventfd()]).failed
        assert dialogue.tell("SET_BACKEND_REQ_FD").failed
