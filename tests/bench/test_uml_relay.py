"""What stands between User-Mode Linux and back-ends that it does not get on with."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench.backends import Running
from tests.bench.peers import uml_relay
from vuproc.spec.vhost_user import (
    FLAG_NEED_REPLY,
    REPLY_FLAGS,
    VERSION,
    FrontendRequest,
    ProtocolFeature,
)

TIMEOUT_S = 10.0
CHANNEL, OTHERS = ProtocolFeature.BACKEND_REQ, ProtocolFeature.CONFIG | ProtocolFeature.MQ


@contextmanager
def ends(directory: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A front-end and a back-end with the relay between them."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as front:
        listener.bind(str(directory / "behind"))
        listener.listen(1)
        for end in (listener, front):
            end.settimeout(TIMEOUT_S)
        behind = Running(directory / "behind", list)
        with uml_relay.relayed(behind, directory / "front") as reached:
            front.connect(str(reached.socket))
            back, _ = listener.accept()
            with back:
                back.settimeout(TIMEOUT_S)
                yield front, back


def message(request: FrontendRequest, payload: bytes = b"", flags: int = VERSION) -> bytes:
    return uml_relay.HEADER.pack(request, flags, len(payload)) + payload


def send_with_fd(end: socket.socket, data: bytes) -> None:
    with open(os.devnull, "rb") as file:
        socket.send_fds(end, [data], [file.fileno()])


def received(end: socket.socket) -> tuple[bytes, int]:
    """The next message, and how many descriptors came with it."""
    said, fds, _, _ = socket.recv_fds(end, 4096, 4)
    for fd in fds:
        os.close(fd)
    return said, len(fds)


def test_a_table_of_regions_is_cut_to_its_number_and_descriptors_pass(tmp_path: Path) -> None:
    with ends(tmp_path) as (front, back):
        payload = struct.pack("<II", 1, 0) + bytes(range(32)) + bytes(32)
        send_with_fd(front, message(FrontendRequest.SET_MEM_TABLE, payload))
        assert received(back) == (message(FrontendRequest.SET_MEM_TABLE, payload[:40]), 1)
        answer = message(FrontendRequest.GET_FEATURES, bytes(8), REPLY_FLAGS)
        back.sendall(answer)
        assert received(front) == (answer, 0)
        front.close()
        assert back.recv(100) == b""


@pytest.mark.parametrize("has_channel", [False, True])
def test_a_channel_is_offered_in_place_of_a_back_end_that_has_none(
    has_channel: bool, tmp_path: Path
) -> None:
    own = OTHERS | CHANNEL if has_channel else OTHERS
    get, set_ = FrontendRequest.GET_PROTOCOL_FEATURES, FrontendRequest.SET_PROTOCOL_FEATURES
    with ends(tmp_path) as (front, back):
        front.sendall(message(get))
        assert received(back) == (message(get), 0)
        back.sendall(message(get, uml_relay.U64.pack(own), REPLY_FLAGS))
        all_of_them = uml_relay.U64.pack(OTHERS | CHANNEL)
        assert received(front) == (message(get, all_of_them, REPLY_FLAGS), 0)
        front.sendall(message(set_, all_of_them))
        assert received(back) == (message(set_, uml_relay.U64.pack(own)), 0)
        channel = message(FrontendRequest.SET_BACKEND_REQ_FD, flags=VERSION | FLAG_NEED_REPLY)
        send_with_fd(front, channel)
        if has_channel:
            assert received(back) == (channel, 1)
        else:
            done = uml_relay.U64.pack(0)
            answer = message(FrontendRequest.SET_BACKEND_REQ_FD, done, REPLY_FLAGS)
            assert received(front) == (answer, 0)
            # The next that the back-end hears of is the next message.
            front.sendall(message(FrontendRequest.GET_FEATURES))
            assert received(back) == (message(FrontendRequest.GET_FEATURES), 0)
