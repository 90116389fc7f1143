"""Catalogue rows A1 to A9: headers, sizes and messages that should not have come."""

from __future__ import annotations

import pytest

from tests.conformance.checks import (
    AT_ONCE_S,
    Rejects,
    closed,
    closes_on_bytes,
    header,
    serves_newcomer,
    works,
)
from vuproc.spec.vhost_user import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    FRONT_END,
    PAYLOAD_MAX,
    U64,
    VERSION,
    ProtocolFeature,
)
from vuproc.testing.errors import Refused
from vuproc.testing.serve import Served
from vuproc.vhost_user.wire import MESSAGE_DEADLINE, encode

SET_FEATURES = FRONT_END.named("SET_FEATURES").number
HALF_SENT = [
    pytest.param(header(SET_FEATURES, 8)[:6], id="a02_half_a_header"),
    pytest.param(header(SET_FEATURES, 8) + bytes(3), id="a03_part_of_the_payload"),
]


@pytest.mark.parametrize("length", [1, 6, 11])
def test_a01_header_cut_short_then_close(disk: Served, length: int) -> None:
    with disk.connect() as front_end:
        front_end.send(header(SET_FEATURES, 8)[:length])
    serves_newcomer(disk)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a01_payload_cut_short_then_close(disk: Served, length: int) -> None:
    with disk.connect() as front_end:
        front_end.send(header(SET_FEATURES, 8) + bytes(length))
    serves_newcomer(disk)


@pytest.mark.parametrize("sent", HALF_SENT)
def test_a02_a03_client_that_stalls_is_cut_off_and_the_next_one_served(
    disk: Served, sent: bytes
) -> None:
    with disk.connect() as stalled:
        stalled.send(sent)
        with disk.guest(timeout_s=MESSAGE_DEADLINE + AT_ONCE_S) as newcomer:
            works(newcomer)
        closed(stalled)


def test_a02_client_that_says_nothing_at_all_gives_way(disk: Served) -> None:
    with disk.connect():
        with disk.guest(timeout_s=MESSAGE_DEADLINE + AT_ONCE_S) as newcomer:
            works(newcomer)


@pytest.mark.parametrize("size", [PAYLOAD_MAX + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a04_size_beyond_any_payload(disk: Served, size: int) -> None:
    closes_on_bytes(disk, header(SET_FEATURES, size) + bytes(64))


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("SET_FEATURES", 7),
        ("SET_FEATURES", 0),
        ("SET_FEATURES", 9),
        ("SET_OWNER", 8),
        ("SET_VRING_NUM", 4),
        ("SET_VRING_ADDR", 39),
        ("SET_VRING_ADDR", 48),
        ("SET_MEM_TABLE", 7),
        ("SET_VRING_KICK", 4),
        ("SET_CONFIG", 11),
        ("REM_MEM_REG", 32),
    ],
)
def test_a05_size_that_is_not_the_structure_s(rejects: Rejects, name: str, length: int) -> None:
    rejects(name, payload=bytes(length))


def test_a05_config_write_that_says_more_than_it_holds(rejects: Rejects) -> None:
    rejects("SET_CONFIG", payload=(0).to_bytes(4, "little") + (8).to_bytes(4, "little") + bytes(8))


@pytest.mark.parametrize("number", [0, 46, 1000, 0x80000000, 0xFFFFFFFF])
def test_a06_unknown_message_number(disk: Served, number: int) -> None:
    with disk.guest(queues=2) as guest:
        guest.front_end.send(encode(number, bytes(8), flags=VERSION | FLAG_NEED_REPLY))
        reply = guest.front_end.receive()
        assert (reply.request, reply.flags) == (number, VERSION | FLAG_REPLY)
        assert U64.unpack(reply.payload)["value"] != 0
        works(guest)
        guest.front_end.send(encode(number, bytes(8)))
        closed(guest.front_end)
    serves_newcomer(disk)


@pytest.mark.parametrize("version", [0, 2, 3])
def test_a07_version_that_is_not_1(disk: Served, version: int) -> None:
    closes_on_bytes(disk, header(SET_FEATURES, 8, version) + bytes(8))


@pytest.mark.parametrize("flags", [0x11, 0x80000001])
def test_a07_reserved_flags(disk: Served, flags: int) -> None:
    closes_on_bytes(disk, header(SET_FEATURES, 8, flags) + bytes(8))


@pytest.mark.parametrize("flags", [VERSION | FLAG_REPLY, VERSION | FLAG_REPLY | FLAG_NEED_REPLY])
def test_a08_reply_bit_on_a_request(disk: Served, flags: int) -> None:
    closes_on_bytes(disk, header(SET_FEATURES, 8, flags) + bytes(8))


@pytest.mark.parametrize("name", ["GET_QUEUE_NUM", "GET_MAX_MEM_SLOTS", "GET_STATUS"])
def test_a09_question_about_what_was_not_negotiated_closes(disk: Served, name: str) -> None:
    with disk.connect() as front_end:
        front_end.negotiate(protocol_features=ProtocolFeature.REPLY_ACK)
        front_end.send(encode(FRONT_END.named(name).number))
        closed(front_end)
    serves_newcomer(disk)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("REM_MEM_REG", {"guest_addr": 0, "size": 4096, "user_addr": 0, "mmap_offset": 0}),
        ("RESET_DEVICE", {}),
        ("SET_STATUS", {"value": 0}),
        ("SET_CONFIG", {"offset": 0, "flags": 0, "data": b"\0"}),
    ],
)
def test_a09_change_by_what_was_not_negotiated(
    disk: Served, name: str, fields: dict[str, object]
) -> None:
    with disk.guest(queues=2, protocol_features=ProtocolFeature.REPLY_ACK) as guest:
        with pytest.raises(Refused):
            guest.front_end.request(name, payload=None, **fields)  # type: ignore[arg-type]
        works(guest)
    serves_newcomer(disk)


@pytest.mark.parametrize("name", ["SEND_RARP", "NET_SET_MTU"])
def test_a09_message_of_a_feature_that_is_never_offered(rejects: Rejects, name: str) -> None:
    row = FRONT_END.named(name)
    rejects(name, payload=row.payload.encode())


@pytest.mark.parametrize("name", ["POSTCOPY_LISTEN", "VRING_KICK"])
def test_a44_messages_of_features_not_offered(rejects: Rejects, name: str) -> None:
    rejects(name, payload=FRONT_END.named(name).payload.encode())


def test_a44_iotlb_message_is_answered_with_an_error(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        answer = guest.front_end.request("IOTLB_MSG", iova=0, size=4096, user_addr=0, type=2)
        assert answer["value"] != 0
        works(guest)
    serves_newcomer(disk)


def test_a44_postcopy_has_no_error_form_so_the_connection_ends(disk: Served) -> None:
    closes_on_bytes(disk, header(FRONT_END.named("POSTCOPY_ADVISE").number, 0))
