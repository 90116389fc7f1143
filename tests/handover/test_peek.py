"""Messages are looked at before they are taken, and the kernel knows how far that went."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from vuproc.errors import ConnectionBroken, Disconnected, FramingError
from vuproc.fd import Fd
from vuproc.handover import peek
from vuproc.handover.peek import PeekingReceiver, drop, untaken, was_read
from vuproc.vhost_user.wire import encode, send

WITH_PAYLOAD = encode(12, bytes(8))
WITHOUT = encode(1)


class Ends:
    def __init__(self) -> None:
        self.theirs, self.ours = socket.socketpair()
        self.parts = 0
        self.receiver = PeekingReceiver(self.ours, self._part)
        assert not was_read(self.ours)
        self.receiver.start()
        assert was_read(self.ours)

    def _part(self) -> None:
        self.parts += 1

    def close(self) -> None:
        self.receiver.close()
        self.theirs.close()
        self.ours.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


@pytest.fixture
def file() -> Iterator[Fd]:
    with Fd(os.memfd_create("sent")) as made:
        yield made


def is_taken(ends: Ends) -> bool:
    return ends.receiver.taken


def test_nothing_is_nothing(ends: Ends) -> None:
    assert ends.receiver.receive() is None
    assert untaken(ends.ours) == 0
    assert ends.parts == 0


@pytest.mark.parametrize("data", [WITH_PAYLOAD, WITHOUT], ids=["payload", "header"])
def test_a_message_is_seen_first_and_taken_then(ends: Ends, data: bytes, file: Fd) -> None:
    send(ends.theirs, data, [file])
    send(ends.theirs, WITHOUT)
    message = ends.receiver.receive()
    assert message is not None and message.fds == ()
    assert not ends.receiver.taken
    assert untaken(ends.ours) == len(data)
    taken = ends.receiver.take(message)
    assert is_taken(ends)
    assert untaken(ends.ours) == 0
    assert (taken.request, taken.payload) == (message.request, message.payload)
    assert [os.path.sameopenfile(fd.fileno(), file.fileno()) for fd in taken.fds] == [True]
    taken.close()
    second = ends.receiver.receive()
    assert second is not None
    assert ends.receiver.take(second).fds == ()


def test_a_successor_knows_whether_it_was_taken(ends: Ends) -> None:
    send(ends.theirs, WITH_PAYLOAD)
    assert ends.receiver.receive() is not None
    with socket.socket(fileno=os.dup(ends.ours.fileno())) as copy:
        assert untaken(copy) == len(WITH_PAYLOAD)
        assert was_read(copy)
        again = PeekingReceiver(copy, lambda: None)
        again.start()
        message = again.receive()
        assert message is not None
        again.take(message)
        assert untaken(ends.ours) == 0


def test_the_rest_can_be_dropped_with_its_descriptors(ends: Ends, file: Fd) -> None:
    send(ends.theirs, WITH_PAYLOAD, [file])
    send(ends.theirs, WITHOUT)
    assert ends.receiver.receive() is not None
    ends.ours.recv(3)
    assert untaken(ends.ours) == len(WITH_PAYLOAD) - 3
    drop(ends.ours, untaken(ends.ours))
    assert untaken(ends.ours) == 0
    again = PeekingReceiver(ends.ours, lambda: None)
    again.start()
    message = again.receive()
    assert message is not None and message.request == 1


@pytest.mark.parametrize("cut", [1, 11, 12, 15, 19])
def test_a_message_in_parts_is_taken_as_it_comes(ends: Ends, cut: int, file: Fd) -> None:
    """Left in the queue, it would keep the socket readable."""
    send(ends.theirs, WITH_PAYLOAD[:cut], [file])
    assert ends.receiver.receive() is None
    assert ends.parts == 1
    assert ends.receiver.receive() is None
    with pytest.raises(BlockingIOError):
        ends.ours.recv(1, socket.MSG_DONTWAIT)
    send(ends.theirs, WITH_PAYLOAD[cut:] + WITHOUT)
    message = ends.receiver.receive()
    assert message is not None and message.payload == bytes(8)
    assert is_taken(ends) and len(message.fds) == 1
    message.close()
    second = ends.receiver.receive()
    assert second is not None and not is_taken(ends)
    ends.receiver.take(second)
    assert ends.parts == 1


def test_byte_by_byte(ends: Ends) -> None:
    for byte in WITH_PAYLOAD[:-1]:
        send(ends.theirs, bytes((byte,)))
        assert ends.receiver.receive() is None
    send(ends.theirs, WITH_PAYLOAD[-1:])
    assert ends.receiver.receive() is not None
    assert ends.receiver.taken
    assert ends.parts == 1


NO_SUCH_OPTION = 9999


def test_where_the_kernel_does_not_count_a_message_is_taken_as_its_parts_are(
    monkeypatch: pytest.MonkeyPatch, file: Fd
) -> None:
    monkeypatch.setattr(peek, "_SO_PEEK_OFF", NO_SUCH_OPTION)
    assert not peek.looks_are_counted()
    theirs, ours = socket.socketpair()
    parts: list[int] = []
    with theirs, ours:
        receiver = PeekingReceiver(ours, lambda: parts.append(1))
        receiver.start()
        assert was_read(ours)  # nobody can tell that it was not
        assert receiver.receive() is None
        assert parts == []
        send(theirs, WITH_PAYLOAD, [file])
        send(theirs, WITHOUT[:5])
        message = receiver.receive()
        assert parts == [1]  # before it was taken
        assert message is not None and receiver.taken and untaken(ours) == 0
        assert [os.path.sameopenfile(fd.fileno(), file.fileno()) for fd in message.fds] == [True]
        message.close()
        assert receiver.receive() is None
        assert parts == [1, 1]
        send(theirs, WITHOUT[5:])
        second = receiver.receive()
        assert second is not None and second.request == 1
        assert parts == [1, 1]
        theirs.close()
        with pytest.raises(Disconnected):
            receiver.receive()
        receiver.close()


def test_the_end_between_two_messages(ends: Ends) -> None:
    ends.theirs.close()
    with pytest.raises(Disconnected):
        ends.receiver.receive()


def test_the_end_inside_a_message(ends: Ends) -> None:
    send(ends.theirs, WITH_PAYLOAD[:15])
    ends.theirs.close()
    with pytest.raises(ConnectionBroken, match="after 15 of 20 bytes"):
        while True:
            ends.receiver.receive()


def test_a_header_that_breaks_the_framing(ends: Ends) -> None:
    send(ends.theirs, encode(1, flags=2))
    with pytest.raises(FramingError):
        ends.receiver.receive()
