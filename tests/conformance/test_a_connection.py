"""Catalogue rows A38 to A41: the back-end channel, disconnects, and several clients at once."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from tests.conformance import processes
from tests.conformance.checks import AT_ONCE_S, broken, closed, serves_newcomer, works
from vuproc.fd import Fd
from vuproc.spec.vhost_user import BACK_END, U64, VERSION, ProtocolFeature
from vuproc.testing.bell import Bell
from vuproc.testing.errors import LoadStalled, Refused
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.job import Job
from vuproc.testing.serve import Served
from vuproc.vhost_user.wire import encode


def test_a38_second_channel_closes_the_first(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        ours, theirs = socket.socketpair()
        with contextlib.closing(ours):
            with Fd(theirs.detach()) as fd:
                guest.front_end.request("SET_BACKEND_REQ_FD", [fd])
            guest.front_end.open_channel()
            ours.settimeout(AT_ONCE_S)
            assert ours.recv(1) == b""
        works(guest)


def test_a38_channel_closed_by_the_front_end(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        guest.front_end.open_channel().close()
        guest.front_end.channel = None
        works(guest)
        guest.queues[0].split.offer_head(0xFFFF)
        guest.queues[0].ring.publish()
        guest.queues[0].kick()
        broken(guest)


def test_a38_channel_that_is_never_read(disk: Served) -> None:
    """The back-end has something to say and no room for it: the data path does not notice."""
    with disk.guest(queues=2) as guest:
        ours, theirs = socket.socketpair()
        with contextlib.closing(ours):
            theirs.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    theirs.send(bytes(65536))
            with contextlib.suppress(BlockingIOError):
                while True:
                    theirs.send(b"\0")
            # O_NONBLOCK belongs to both holders of the description; the back-end must not rely
            # on it, nor on its absence.
            theirs.setblocking(True)
            with Fd(theirs.detach()) as fd:
                guest.front_end.request("SET_BACKEND_REQ_FD", [fd])
            guest.queues[0].split.offer_head(0xFFFF)
            guest.queues[0].ring.publish()
            guest.queues[0].kick()
            broken(guest)


@pytest.mark.parametrize("kind", ["eventfd", "datagram"])
def test_a38_channel_that_is_no_stream_socket(disk: Served, kind: str) -> None:
    with disk.guest(queues=2) as guest:
        if kind == "eventfd":
            bell = Bell()
            with pytest.raises(Refused):
                guest.front_end.request("SET_BACKEND_REQ_FD", [bell.theirs])
            bell.close()
        else:
            left, right = socket.socketpair(type=socket.SOCK_DGRAM)
            with contextlib.closing(left), Fd(right.detach()) as fd:
                # Refused, or taken and useless: either way nothing else suffers.
                with contextlib.suppress(Refused):
                    guest.front_end.request("SET_BACKEND_REQ_FD", [fd])
                works(guest)
        works(guest)


def test_a39_stray_reply_on_the_channel_closes_it_and_no_more(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        channel = guest.front_end.open_channel()
        answer = encode(BACK_END.named("SHMEM_MAP").number, U64.pack(value=0), flags=VERSION | 4)
        channel.socket.send(answer)
        channel.socket.settimeout(AT_ONCE_S)
        with contextlib.suppress(ConnectionResetError):
            assert channel.socket.recv(1) == b""
        works(guest)


def test_a40_disconnect_in_the_middle_of_requests(disk: Served) -> None:
    for _ in range(10):
        with disk.guest(queues=2) as guest:
            for index, queue in guest.queues.items():
                queue.submit_many([([bytes(16)], [4096, 1])] * 20, indirect=True)
                assert index in (0, 1)
    serves_newcomer(disk)
    with disk.connect() as front_end:
        # Its answer proves that the connection before it is wholly gone.
        front_end.request("GET_FEATURES")
        for pid in processes.family(disk.pid):
            assert not processes.guest_mappings(pid), "guest memory is still mapped"


def test_a40_disconnect_under_load_without_a_word(disk: Served) -> None:
    with disk.guest(queues=1) as guest:
        job = Job(count=1 << 40, depth=32, block_size=512, span=1 << 20, poll=True, stall_s=0.5)
        generator, _ = guest.queues[0].loader(job)
        stalled: list[LoadStalled] = []

        def run() -> None:
            try:
                generator.run()
            except LoadStalled as error:
                stalled.append(error)

        load = threading.Thread(target=run)
        load.start()
        while generator.completed < 1000 and load.is_alive():
            guest.front_end.request("GET_FEATURES")
        guest.front_end.close()
        load.join()
        assert stalled, "requests were completed after the connection's end"
    serves_newcomer(disk)


def test_a41_second_connection_waits_and_does_not_disturb_the_first(disk: Served) -> None:
    with disk.guest(queues=2) as first:
        with disk.connect() as second:
            second.send(encode(1))
            works(first)
            first.front_end.close()
            assert second.receive().fields()["value"]


def test_a41_a_hundred_connections_while_one_is_live(disk: Served) -> None:
    with disk.guest(queues=2) as guest, contextlib.ExitStack() as crowd:
        for _ in range(100):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            crowd.callback(sock.close)
            sock.setblocking(False)
            # Beyond the backlog the kernel turns them away itself.
            with contextlib.suppress(BlockingIOError):
                sock.connect(str(disk.socket))
        works(guest)
        guest.status()
        works(guest)
    serves_newcomer(disk)


def test_a41_a_hundred_clients_that_connect_and_go(disk: Served) -> None:
    for _ in range(100):
        disk.connect().close()
    serves_newcomer(disk)


def test_a41_connection_that_speaks_and_vanishes_before_its_answer(disk: Served) -> None:
    for _ in range(20):
        with disk.connect() as front_end:
            front_end.send(encode(1) * 50)
    serves_newcomer(disk)


def test_a41_client_that_never_reads_its_answers_is_let_go(disk: Served) -> None:
    """Its own socket fills up; the next client waits no longer than for that deadline."""
    left = disk.connect()
    with contextlib.closing(left):
        left.set_protocol_features(ProtocolFeature.REPLY_ACK)
        _fill(left)
        with disk.guest(timeout_s=2 * AT_ONCE_S) as newcomer:
            works(newcomer)
        closed(left)


def _fill(front_end: FrontEnd) -> None:
    """Ask without reading until the back-end cannot answer and so takes no more."""
    front_end.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            front_end.socket.send(encode(1) * 256)
