"""In-band notifications with real workers: no kick, call or error descriptor is ever sent."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import termios
import time
from collections.abc import Iterator

import pytest

from vuproc.fd import Fd
from vuproc.spec.blk import BlkType
from vuproc.spec.vhost_user import HEADER, VRING_STATE, BackendRequest, ProtocolFeature
from vuproc.testing.block import Block
from vuproc.testing.channel import BackEndChannel
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve

DISK = {"type": "blk", "ram": "64MiB", "queues": 2}
FILE = {"inband_notifications": True}
SECTOR = 512
MESSAGE_BYTES = HEADER.size + VRING_STATE.size

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def served() -> Iterator[Served]:
    with serve(DISK, file=FILE) as served:
        yield served


def write_and_read(guest: Guest, content: bytes, sector: int = 0) -> None:
    """On each queue, a place of its own; what is waited for comes by VRING_CALL alone."""
    disk = Block(guest)
    for queue in guest.queues:
        at = sector + queue * 64
        disk.write(at, content * SECTOR, queue=queue)
        assert disk.read(at, SECTOR, queue=queue) == content * SECTOR


def test_it_is_offered_only_if_the_device_file_says_so() -> None:
    with serve(DISK) as served, served.connect() as front_end:
        offered = ProtocolFeature(front_end.request("GET_PROTOCOL_FEATURES")["value"])
        assert ProtocolFeature.INBAND_NOTIFICATIONS not in offered


@pytest.mark.proves(
    "VRING_KICK", "BACKEND_VRING_CALL", "PROTOCOL_F_INBAND_NOTIFICATIONS", front_end="built-in"
)
def test_requests_are_served_and_their_ends_told_in_band(served: Served) -> None:
    with served.guest(queues=2, inband=True) as guest:
        for round_number in range(50):
            write_and_read(guest, bytes([round_number]), round_number)


def test_a_worker_that_dies_is_replaced_and_has_the_same_bells(served: Served) -> None:
    with served.guest(queues=2, inband=True) as guest:
        for round_number in range(5):
            write_and_read(guest, bytes([1 + round_number]))
            served.kill_worker(round_number % 2)
        write_and_read(guest, b"z")


def test_a_ring_that_was_stopped_goes_on_when_it_is_enabled(served: Served) -> None:
    with served.guest(queues=1, inband=True) as guest:
        write_and_read(guest, b"a")
        guest.enable_queue(0, False)
        base = guest.stop_queue(0)
        assert base == 2
        guest.front_end.request("SET_VRING_BASE", index=0, num=base)
        guest.enable_queue(0)
        write_and_read(guest, b"b")


@pytest.mark.proves("BACKEND_VRING_ERR", front_end="built-in")
def test_a_broken_ring_is_told_of_in_band(served: Served) -> None:
    with served.guest(queues=1, inband=True) as guest:
        guest.queues[0].split.avail_index = 30_000
        guest.queues[0].kick()
        channel = guest.front_end.channel
        assert channel is not None
        message = channel.receive()
        assert message is not None
        assert message.request == BackendRequest.VRING_ERR
        assert message.fields() == {"index": 0, "num": 0}


def test_a48_calls_that_find_no_room_in_the_channel_come_later(served: Served) -> None:
    """A front-end that does not read stops nobody, and loses no call by it."""
    with served.guest(queues=1, inband=True) as guest:
        channel = narrow_channel(guest)
        for number in range(300):
            serve_unheard(guest, number)
        for _ in range(2):
            # What rang before the first is passed on by the answer to the second.
            guest.front_end.request("GET_FEATURES")
        fit = unread(channel.socket) // MESSAGE_BYTES
        assert 0 < fit < 100
        for _ in range(fit + 1):
            assert channel.read(30.0)
        write_and_read(guest, b"c")


def test_another_master_goes_on_with_the_bells() -> None:
    with (
        serve(DISK, file=FILE, arguments=("--supervised",)) as served,
        served.guest(queues=2, inband=True) as guest,
    ):
        for content in (b"a", b"b", b"c"):
            write_and_read(guest, content)
            before = served.status().pid
            os.kill(before, signal.SIGKILL)
        write_and_read(guest, b"d")
        assert served.status().pid != before


def serve_unheard(guest: Guest, sector: int) -> None:
    """One request whose call is asked for and not read: its end is seen in the ring."""
    queue = guest.queues[0]
    queue.ring.arm()
    Block(guest).submit(BlkType.OUT, sector, [bytes(SECTOR)])
    deadline = time.monotonic() + 30.0
    while queue.in_flight:
        queue.reap()
        assert time.monotonic() < deadline
    queue.ring.disarm()


def unread(sock: socket.socket) -> int:
    """Bytes in a socket's queue."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
    return int(count)


def narrow_channel(guest: Guest) -> BackEndChannel:
    """Open the channel anew, with room for few messages."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    front_end = guest.front_end
    with Fd(theirs.detach()) as fd:
        front_end.request("SET_BACKEND_REQ_FD", [fd])
    if front_end.channel is not None:
        front_end.channel.close()
    front_end.channel = BackEndChannel(ours)
    return front_end.channel
