"""The codec gives and takes the bytes that real front-ends exchange, however they come."""

from __future__ import annotations

import array
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from vuproc.errors import ConnectionBroken, Disconnected, FramingError, MessageRefused
from vuproc.fd import Fd
from vuproc.spec.vhost_user import BACK_END, FRONT_END, PAYLOAD_MAX, VERSION, BackendRequest
from vuproc.vhost_user.wire import Message, Receiver, encode, reply, send

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def raw(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


def eventfds(count: int) -> list[Fd]:
    """Distinct descriptors: reading the first gives 1, the second 2 and so on."""
    return [Fd(os.eventfd(number)) for number in range(1, count + 1)]


def close_all(*fds: Fd) -> None:
    for fd in fds:
        fd.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def give(sock: socket.socket, data: bytes, *blocks: list[Fd]) -> None:
    """Send bytes with each list of descriptors in a control block of its own."""
    ancillary = [
        (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd.fileno() for fd in block]))
        for block in blocks
    ]
    assert sock.sendmsg([data], ancillary) == len(data)


def take(receiver: Receiver) -> Message:
    message = receiver.receive()
    assert message is not None
    return message


# ---- golden bytes, as captured from QEMU 7.2 -----------------------------------------------------

GOLDEN: list[tuple[str, str, int, dict[str, Any]]] = [
    ("GET_FEATURES", "01000000 01000000 00000000", 0x1, {}),
    (
        "SET_FEATURES",
        "02000000 01000000 08000000 0000004001000000",
        0x1,
        {"value": 1 << 30 | 1 << 32},
    ),
    (
        "SET_VRING_NUM",
        "08000000 01000000 08000000 00000000 80000000",
        0x1,
        {"index": 0, "num": 128},
    ),
    ("SET_VRING_CALL", "0d000000 01000000 08000000 0100000000000000", 0x1, {"value": 1}),
    (
        "SET_VRING_ADDR",
        "09000000 01000000 28000000 00000000 00000000 00c0fddfc27f0000 00d0fddfc27f0000"
        "00c8fddfc27f0000 00e0fd0f00000000",
        0x1,
        {
            "index": 0,
            "flags": 0,
            "desc": 0x7FC2DFFDC000,
            "used": 0x7FC2DFFDD000,
            "avail": 0x7FC2DFFDC800,
            "log": 0x0FFDE000,
        },
    ),
    (
        "GET_INFLIGHT_FD",
        "1f000000 01000000 18000000 0000000000000000 0000000000000000 0200 8000 00000000",
        0x1,
        {"mmap_size": 0, "mmap_offset": 0, "num_queues": 2, "queue_size": 128},
    ),
    (
        "SET_INFLIGHT_FD",
        "20000000 01000000 18000000 8010000000000000 0000000000000000 0200 8000 00000000",
        0x1,
        {"mmap_size": 0x1080, "mmap_offset": 0, "num_queues": 2, "queue_size": 128},
    ),
]
GOLDEN_NAMES = [name for name, *_ in GOLDEN]


@pytest.mark.parametrize(("name", "text", "flags", "fields"), GOLDEN, ids=GOLDEN_NAMES)
def test_golden_request_is_encoded(
    name: str, text: str, flags: int, fields: dict[str, Any]
) -> None:
    row = FRONT_END.named(name)
    assert encode(row.number, row.payload.encode(**fields), flags=flags) == raw(text)


@pytest.mark.parametrize(("name", "text", "flags", "fields"), GOLDEN, ids=GOLDEN_NAMES)
def test_golden_request_is_decoded(
    pair: Pair, name: str, text: str, flags: int, fields: dict[str, Any]
) -> None:
    ours, theirs = pair
    theirs.sendall(raw(text))
    message = take(Receiver(ours))
    assert (message.name, message.flags, message.fields()) == (name, flags, fields)
    assert not message.need_reply
    assert not message.is_reply


@pytest.mark.parametrize(
    ("request_number", "value", "text"),
    [
        (1, 1 << 30 | 1 << 32, "01000000 05000000 08000000 0000004001000000"),
        (37, 0, "25000000 05000000 08000000 0000000000000000"),
        (37, 1, "25000000 05000000 08000000 0100000000000000"),
    ],
)
def test_golden_reply_is_encoded(request_number: int, value: int, text: str) -> None:
    request = Message(request_number, flags=0x9)
    assert reply(request, struct.pack("=Q", value)) == raw(text)


def test_a_reply_clears_need_reply_for_qemu_refuses_other_flags() -> None:
    assert reply(Message(24, flags=0x9), b"")[4:8] == b"\5\0\0\0"


# ---- receiving -----------------------------------------------------------------------------------


def test_nothing_there_is_none_even_on_a_blocking_socket(pair: Pair) -> None:
    ours, _ = pair
    receiver = Receiver(ours)
    assert ours.getblocking()
    assert receiver.receive() is None
    assert receiver.partial_since is None
    assert receiver.deadline is None


def test_a_message_comes_a_byte_at_a_time(pair: Pair) -> None:
    ours, theirs = pair
    receiver = Receiver(ours)
    data = encode(8, struct.pack("=II", 1, 256), flags=0x9)
    for byte in data[:-1]:
        theirs.sendall(bytes([byte]))
        assert receiver.receive() is None
        assert receiver.partial_since is not None
    theirs.sendall(data[-1:])
    message = take(receiver)
    assert message.fields() == {"index": 1, "num": 256}
    assert message.need_reply
    assert receiver.partial_since is None


def test_messages_sent_at_once_come_one_by_one_with_their_own_descriptors(pair: Pair) -> None:
    ours, theirs = pair
    one, two = eventfds(2)
    kick = [encode(12, struct.pack("=Q", index)) for index in range(2)]
    give(theirs, kick[0], [one])
    give(theirs, kick[1], [two])
    receiver = Receiver(ours)
    for index in range(2):
        message = take(receiver)
        assert message.fields() == {"value": index}
        assert [os.eventfd_read(fd.fileno()) for fd in message.fds] == [index + 1]
        message.close()
    assert receiver.receive() is None
    close_all(one, two)


def test_descriptors_are_close_on_exec_and_owned_by_the_message(pair: Pair) -> None:
    ours, theirs = pair
    (fd,) = eventfds(1)
    give(theirs, encode(12, struct.pack("=Q", 0)), [fd])
    message = take(Receiver(ours))
    assert not os.get_inheritable(message.fds[0].fileno())
    message.close()
    assert message.fds[0].closed
    fd.close()


def test_a15_descriptors_in_several_blocks_are_all_taken(pair: Pair) -> None:
    ours, theirs = pair
    fds = eventfds(5)
    give(theirs, encode(5, bytes(8)), fds[:2], fds[2:])
    message = take(Receiver(ours))
    assert len(message.fds) == 5
    message.close()
    close_all(*fds)


def test_a15_descriptors_split_over_header_and_payload_are_all_taken(pair: Pair) -> None:
    ours, theirs = pair
    fds = eventfds(3)
    data = encode(5, bytes(8))
    receiver = Receiver(ours)
    give(theirs, data[:12], fds[:1])
    assert receiver.receive() is None
    give(theirs, data[12:15], fds[1:2])
    give(theirs, data[15:], fds[2:])
    message = take(receiver)
    assert len(message.fds) == 3
    message.close()
    close_all(*fds)


def test_a14_as_many_descriptors_as_the_kernel_passes(pair: Pair) -> None:
    ours, theirs = pair
    fds = eventfds(253)
    before = open_fds()
    give(theirs, encode(3), fds)
    message = take(Receiver(ours))
    assert len(message.fds) == 253
    message.close()
    assert open_fds() == before
    close_all(*fds)


def test_a14_more_descriptors_than_one_message_may_have_are_closed(pair: Pair) -> None:
    ours, theirs = pair
    fds = eventfds(253)
    before = open_fds()
    give(theirs, encode(5, bytes(8))[:12], fds)
    give(theirs, bytes(1), fds[:1])
    with pytest.raises(FramingError, match="more than 253"):
        Receiver(ours).receive()
    assert open_fds() == before
    close_all(*fds)


def test_a14_f1_descriptors_lost_for_want_of_numbers_break_the_framing(pair: Pair) -> None:
    ours, theirs = pair
    fds = eventfds(8)
    before = open_fds()
    give(theirs, encode(3), fds)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The next free number is about `before`: leave room for three of the eight.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fd.fileno() for fd in fds) + 4, hard))
    try:
        with pytest.raises(FramingError, match=r"were lost: [0-9]+ open files are allowed"):
            Receiver(ours).receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_fds() == before
    close_all(*fds)


# ---- the end of a connection ---------------------------------------------------------------------


def test_the_end_between_messages_is_no_fault(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(Disconnected):
        Receiver(ours).receive()


def test_the_end_with_our_reply_unread_is_no_fault(pair: Pair) -> None:
    ours, theirs = pair
    ours.sendall(reply(Message(1), bytes(8)))
    theirs.close()
    with pytest.raises(Disconnected):
        Receiver(ours).receive()


@pytest.mark.parametrize("length", [1, 11, 12, 19])
def test_a1_the_end_inside_a_message_breaks_the_connection(pair: Pair, length: int) -> None:
    ours, theirs = pair
    receiver = Receiver(ours)
    theirs.sendall(encode(8, bytes(8))[:length])
    assert receiver.receive() is None
    theirs.close()
    with pytest.raises(ConnectionBroken, match=f"after {length} of"):
        receiver.receive()


def test_a1_descriptors_of_a_message_cut_short_are_closed(pair: Pair) -> None:
    ours, theirs = pair
    fds = eventfds(4)
    before = open_fds()
    receiver = Receiver(ours)
    give(theirs, encode(5, bytes(40))[:20], fds)
    assert receiver.receive() is None
    assert open_fds() == before + 4
    theirs.close()
    with pytest.raises(ConnectionBroken):
        receiver.receive()
    assert open_fds() == before - 1  # the peer's end of the pair
    close_all(*fds)


@pytest.mark.parametrize("length", [6, 14])
def test_a2_a3_a_message_that_stalls_is_cut_off_at_its_deadline(pair: Pair, length: int) -> None:
    ours, theirs = pair
    patient = Receiver(ours, deadline_s=3600)
    theirs.sendall(encode(8, bytes(8))[:length])
    assert patient.receive() is None
    assert patient.partial_since is not None
    assert patient.deadline == patient.partial_since + 3600
    strict = Receiver(ours, deadline_s=0)
    theirs.sendall(encode(8, bytes(8))[:length])
    with pytest.raises(ConnectionBroken, match="not complete after 0 s"):
        strict.receive()


def test_a_receiver_that_is_closed_keeps_no_descriptor(pair: Pair) -> None:
    ours, theirs = pair
    fds = eventfds(2)
    before = open_fds()
    receiver = Receiver(ours)
    give(theirs, encode(5, bytes(40))[:20], fds)
    assert receiver.receive() is None
    receiver.close()
    assert open_fds() == before
    assert receiver.partial_since is None
    close_all(*fds)


# ---- broken framing ------------------------------------------------------------------------------


def test_a4_an_oversize_payload_is_refused_before_it_is_read(pair: Pair) -> None:
    ours, theirs = pair
    for size in (0xFFFFFFFF, PAYLOAD_MAX + 1):
        theirs.sendall(struct.pack("=III", 5, 1, size))
        with pytest.raises(FramingError, match=f"payload of {size} bytes"):
            Receiver(ours).receive()


def test_a4_the_largest_payload_is_taken(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(encode(24, bytes(PAYLOAD_MAX)))
    assert len(take(Receiver(ours)).payload) == PAYLOAD_MAX


@pytest.mark.parametrize("version", [0, 2, 3])
def test_a7_another_version_is_refused(pair: Pair, version: int) -> None:
    ours, theirs = pair
    theirs.sendall(struct.pack("=III", 1, version, 0))
    with pytest.raises(FramingError, match=f"version {version}"):
        Receiver(ours).receive()


def test_a8_a_reply_where_a_request_is_due_is_refused(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(struct.pack("=III", 1, 0x5, 0))
    with pytest.raises(FramingError, match="a reply where none is due"):
        Receiver(ours).receive()


def test_reserved_flags_are_refused(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(struct.pack("=III", 1, 0x11, 0))
    with pytest.raises(FramingError, match="reserved bits"):
        Receiver(ours).receive()


def test_a13_descriptors_of_a_broken_header_are_closed(pair: Pair) -> None:
    ours, theirs = pair
    fds = eventfds(7)
    before = open_fds()
    give(theirs, struct.pack("=III", 1, 0, 0), fds)
    with pytest.raises(FramingError):
        Receiver(ours).receive()
    assert open_fds() == before
    close_all(*fds)


# ---- messages ------------------------------------------------------------------------------------


def test_a6_an_unknown_number_still_has_a_name_but_no_fields(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(encode(1000, b"abc"))
    message = take(Receiver(ours))
    assert message.name == "message 1000"
    assert message.spec is None
    with pytest.raises(MessageRefused, match="unknown"):
        message.fields()


def test_a5_a_payload_shorter_than_its_structure_has_no_fields() -> None:
    with pytest.raises(MessageRefused, match="takes 8 bytes, 7 are there"):
        Message(8, payload=bytes(7)).fields()
    with pytest.raises(MessageRefused, match="takes 8 bytes, not 9"):
        Message(8, payload=bytes(9)).fields()


def test_a_memory_table_padded_past_its_regions_has_fields() -> None:
    row = FRONT_END.named("SET_MEM_TABLE")
    region = {"guest_addr": 1, "size": 2, "user_addr": 3, "mmap_offset": 4}
    payload = row.payload.encode(items=[region]).ljust(72, b"\0")
    assert Message(row.number, payload=payload).fields()["items"] == [region]


def test_replies_are_received_where_they_are_due(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(reply(Message(11), struct.pack("=II", 0, 77)))
    message = take(Receiver(ours, replies=True))
    assert message.is_reply
    assert message.fields() == {"index": 0, "num": 77}
    theirs.sendall(encode(11, bytes(8)))
    with pytest.raises(FramingError, match="a request where none is due"):
        Receiver(ours, replies=True).receive()


def test_the_back_end_channel_has_its_own_numbers(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(encode(BackendRequest.CONFIG_CHANGE_MSG))
    message = take(Receiver(ours, table=BACK_END))
    assert (message.name, message.fields()) == ("CONFIG_CHANGE_MSG", {})


# ---- sending -------------------------------------------------------------------------------------


def test_send_passes_bytes_and_descriptors(pair: Pair) -> None:
    ours, theirs = pair
    fds = eventfds(3)
    send(ours, encode(5, bytes(8)), fds)
    message = take(Receiver(theirs))
    assert len(message.fds) == 3
    assert not any(fd.closed for fd in fds)
    message.close()
    close_all(*fds)


def test_send_gives_up_on_a_peer_that_does_not_read(pair: Pair) -> None:
    ours, _ = pair
    with pytest.raises(ConnectionBroken, match="did not take a message within 0 s"):
        while True:
            send(ours, bytes(4096), deadline=0)


def test_send_waits_for_room_and_passes_descriptors_once(pair: Pair) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    fds = eventfds(1)
    data = os.urandom(1 << 20)
    got = bytearray()
    descriptors: list[int] = []

    def drain() -> None:
        while len(got) < len(data):
            chunk, ancillary, _, _ = theirs.recvmsg(4096, 1024, socket.MSG_CMSG_CLOEXEC)
            got.extend(chunk)
            for _, _, block in ancillary:
                descriptors.extend(array.array("i", block))

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        send(ours, data, fds, deadline=30)
    finally:
        reader.join(30)
    assert got == data
    assert len(descriptors) == 1
    os.close(descriptors[0])
    close_all(*fds)


def test_send_to_a_peer_that_is_gone(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(Disconnected):
        send(ours, encode(1, flags=VERSION))
