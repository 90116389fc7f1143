"""The codec, fed any bytes in any pieces, against a reading of the same bytes in one go."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vuproc.errors import ConnectionBroken, Disconnected, FramingError, MessageRefused
from vuproc.fd import Fd
from vuproc.spec.vhost_user import (
    BACK_END,
    FDS_MAX,
    FLAG_REPLY,
    FLAGS_KNOWN,
    FRONT_END,
    HEADER,
    PAYLOAD_MAX,
    VERSION,
    VERSION_MASK,
    MessageTable,
)
from vuproc.vhost_user.wire import Message, Receiver, encode

NEVER_S = 1e6
LONGEST = 1 << 16
"""As much as a socket takes at once."""
HOW = 3
"""Bytes that say how the others come: the size of a piece, descriptors, which end this is."""


@dataclass(frozen=True)
class Expected:
    """What a codec must make of some bytes."""

    messages: tuple[tuple[int, int, bytes], ...]
    """Number, flags, payload."""
    broken: bool
    """The framing is, after these."""
    rest: int
    """Bytes of a message that is not over."""


def expected(data: bytes, *, replies: bool) -> Expected:
    """Read `data` as the specification has it."""
    found: list[tuple[int, int, bytes]] = []
    at = 0
    while len(data) - at >= HEADER.size:
        head = HEADER.unpack(data, at)
        flags, size = head["flags"], head["size"]
        version = flags & VERSION_MASK == VERSION and not flags & ~FLAGS_KNOWN
        if not version or bool(flags & FLAG_REPLY) != replies or size > PAYLOAD_MAX:
            return Expected(tuple(found), True, 0)
        if len(data) - at - HEADER.size < size:
            break
        at += HEADER.size
        found.append((head["request"], flags, data[at : at + size]))
        at += size
    return Expected(tuple(found), False, len(data) - at)


def wire_target(data: bytes) -> None:
    """Receives all of it; AssertionError, or whatever else is raised, is a fault."""
    how, data = data[:HOW].ljust(HOW, b"\0"), data[HOW : HOW + LONGEST]
    table = BACK_END if how[2] & 1 else FRONT_END
    replies = bool(how[2] & 2)
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        due = expected(data, replies=replies)
        # Its time does not run out because the machine had others to run.
        receiver = Receiver(ours, table=table, replies=replies, deadline_s=NEVER_S)
        _receive(ours, theirs, due, _pieces(data, how), receiver)
    assert len(os.listdir("/proc/self/fd")) == before


def _pieces(data: bytes, how: bytes) -> Iterator[tuple[bytes, int]]:
    """What is sent at once, and with how many descriptors; fewer in all than a message may have."""
    step = 1 + how[0] * 8
    for number, at in enumerate(range(0, len(data), step)):
        some = number % 2 == how[1] >> 7 and number < FDS_MAX // 3
        yield data[at : at + step], how[1] % 4 if some else 0


def _receive(
    ours: socket.socket,
    theirs: socket.socket,
    due: Expected,
    pieces: Iterator[tuple[bytes, int]],
    receiver: Receiver,
) -> None:
    found: list[tuple[int, int, bytes]] = []
    try:
        for piece, count in pieces:
            _send(theirs, piece, count)
            while (message := receiver.receive()) is not None:
                found.append((message.request, message.flags, message.payload))
                _check_fields(message)
                message.close()
        assert not due.broken
        theirs.shutdown(socket.SHUT_WR)
        assert (receiver.partial_since is None) == (due.rest == 0)
        assert receiver.receive() is None, "out of nothing"
    except FramingError:
        assert due.broken
    except ConnectionBroken:
        assert due.rest
    except Disconnected:
        assert not due.rest
    assert tuple(found) == due.messages


def _send(theirs: socket.socket, piece: bytes, count: int) -> None:
    fds = [Fd(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)) for _ in range(count)]
    rights = array.array("i", [fd.fileno() for fd in fds])
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
    assert theirs.sendmsg([piece], ancillary) == len(piece)
    for fd in fds:
        fd.close()


def _check_fields(message: Message) -> None:
    """What is decoded says the same once more if it is encoded."""
    try:
        fields = message.fields()
    except MessageRefused:
        return
    assert message.spec is not None
    row = message.spec
    form = row.reply_payload if message.is_reply else row.payload
    again = form.encode(**fields)
    assert form.decode(again) == fields
    assert form.padded or len(again) == len(message.payload)


def header_seeds() -> Mapping[str, bytes]:
    """Headers at the edge of what is one, with as many bytes behind them as they may say."""
    found = {}
    for size in (0, 1, PAYLOAD_MAX - 1, PAYLOAD_MAX, PAYLOAD_MAX + 1, 0xFFFF_FFFF):
        for flags in (0, VERSION, 2, 3, FLAGS_KNOWN ^ FLAG_REPLY ^ 2, FLAGS_KNOWN + 1, 1 << 31 | 1):
            head = HEADER.pack(request=1, flags=flags, size=size)
            found[f"size {size}, flags {flags:#x}"] = bytes([63, 1, 0]) + head + bytes(PAYLOAD_MAX)
    return found


def wire_seeds(table: MessageTable = FRONT_END) -> Mapping[str, bytes]:
    """Each message of a table with a payload of zeros, as a request and as a reply."""
    side = table is BACK_END
    found = {}
    for row in table:
        for is_reply, form in ((False, row.payload), (True, row.reply_payload)):
            body = form.encode(**({"items": [{}]} if form.item else {}))
            flags = VERSION | (FLAG_REPLY if is_reply else 0)
            how = bytes([2, 1, side | is_reply << 1])
            name = f"{row.name} {'reply' if is_reply else 'request'} {table.direction}"
            found[name] = how + encode(row.number, body, flags=flags) * 2
    return found
