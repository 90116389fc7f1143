"""A tap of several queues, of which frames come by those that the driver has in use; UDP's
segments, which driver and interface leave to each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.devices.network_of_ours import BOUND_S, bring_up, datagram, network, wire
from vuproc.devices.net_tap import USO_SINCE
from vuproc.spec.net import CONTROL_OK, HEADER, Control, NetFeature
from vuproc.testing import Guest, serve
from vuproc.testing.errors import NoCompletion

pytestmark = pytest.mark.timeout(120)

TAP, HOST, GUEST = "vutap0", "10.9.8.1", "10.9.8.2"
MAC = b"\x52\x54\0\0\0\1"
FLOWS = 48
SIZE = 1526
PAIRS_SET = int(Control.MQ_PAIRS_SET).to_bytes(2, "big")
SIOCSARP, ATF_COMPLETE, ATF_PERMANENT = 0x8955, 0x02, 0x04
UDP_SEGMENT = 103
GSO_UDP_L4 = 5
"""VIRTIO_NET_HDR_GSO_UDP_L4 (virtio 1.3 section 5.1.6)."""
NEEDS_CSUM = 1


@pytest.fixture(autouse=True)
def net() -> Iterator[None]:
    with network():
        yield


def flow(number: int) -> bytes:
    """A frame of a connection of its own, as interfaces tell them apart."""
    udp = struct.pack("!HHHH", 1000 + number, 2000 + 7 * number, 8, 0)
    source, target = socket.inet_aton(HOST), socket.inet_aton(GUEST)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, source, target)
    return MAC + b"\2\0\0\0\0\1" + b"\x08\0" + ip + udp + bytes(18)


def spread(guest: Guest, host: socket.socket, pairs: int = 2) -> list[int]:
    """How many of the flows each receive queue gets; none is lost."""
    for number in range(FLOWS):
        host.send(flow(number))
    found, deadline = [0] * pairs, time.monotonic() + BOUND_S
    while sum(found) < FLOWS:
        assert time.monotonic() < deadline, f"of {FLOWS} frames {found} have come"
        for pair in range(pairs):
            found[pair] += taken(guest, 2 * pair)
    return found


def wait_for_pairs(guest: Guest, host: socket.socket, pairs: int) -> None:
    """A worker hears of it from another, and as a queue is detached what is in it is lost."""
    deadline = time.monotonic() + BOUND_S
    while True:
        for number in range(FLOWS):
            host.send(flow(number))
        first, second = taken(guest, 0, 0.1), taken(guest, 2, 0.1)
        if first and bool(second) == (pairs == 2):
            return
        assert time.monotonic() < deadline


def taken(guest: Guest, queue: int, patience_s: float = 0.01) -> int:
    """How many of the flows' frames a queue has by now."""
    count = 0
    with contextlib.suppress(NoCompletion):
        while True:
            count += guest.receive(queue, patience_s)[HEADER.size :].startswith(MAC)
    return count


def filled(guest: Guest) -> None:
    for queue in (0, 2):
        guest.keep_filled(queue, count=128, size=SIZE)


def test_a_pair_that_the_front_end_disables_has_no_frames() -> None:
    """A guest of one CPU uses one pair of those that it is given."""
    with serve({"type": "net", "backend": "tap", "interface": TAP, "pairs": 2}) as served:
        bring_up(TAP)
        with wire(TAP) as host, served.guest(queues=4, queue_size=256) as guest:
            filled(guest)
            assert all(spread(guest, host))
            guest.enable_queue(2, False)
            assert spread(guest, host)[1] == 0
            guest.enable_queue(2, True)
            assert all(spread(guest, host))
            guest.stop_queue(2)
            assert spread(guest, host)[1] == 0


def test_pairs_are_in_use_as_the_control_queue_says_over_deaths() -> None:
    with serve({"type": "net", "backend": "tap", "interface": TAP, "pairs": 2}) as served:
        bring_up(TAP)
        with wire(TAP) as host, served.guest(queues=5, queue_size=256) as guest:
            filled(guest)
            assert spread(guest, host)[1] == 0
            assert guest.do(4, [PAIRS_SET + b"\2\0"], [1]).data[0] == bytes([CONTROL_OK])
            wait_for_pairs(guest, host, 2)
            for queue in (2, 0):
                served.wait_worker(queue, other_than=served.kill_worker(queue))
                assert all(spread(guest, host))
            assert guest.do(4, [PAIRS_SET + b"\1\0"], [1]).data[0] == bytes([CONTROL_OK])
            wait_for_pairs(guest, host, 1)
            served.wait_worker(2, other_than=served.kill_worker(2))
            assert spread(guest, host)[1] == 0


def test_whoever_comes_next_has_one_pair_if_it_wants_one() -> None:
    with serve({"type": "net", "backend": "tap", "interface": TAP, "pairs": 2}) as served:
        bring_up(TAP)
        with wire(TAP) as host:
            with served.guest(queues=4, queue_size=256) as guest:
                filled(guest)
                assert all(spread(guest, host))
            with served.guest(queues=2, queue_size=256) as guest:
                guest.keep_filled(0, count=128, size=SIZE)
                assert spread(guest, host, 1) == [FLOWS]


# Segments of UDP.


def takes_udp() -> bool:
    release = os.uname().release.split(".")
    return (int(release[0]), int(release[1])) >= USO_SINCE


needs_uso = pytest.mark.skipif(
    not takes_udp(), reason="the kernel's interfaces take no segments of UDP before 6.2"
)


def known_to_host(address: str, mac: bytes) -> None:
    """An entry in its table of neighbours."""
    entry = struct.pack("=H2x4s8x", socket.AF_INET, socket.inet_aton(address))
    entry += struct.pack("=H6s8x", 1, mac)
    entry += struct.pack("=i16x16s", ATF_COMPLETE | ATF_PERMANENT, TAP.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSARP, entry)


@needs_uso
def test_a_driver_leaves_segments_of_udp_to_the_interface() -> None:
    with serve({"type": "net", "backend": "tap", "interface": TAP}) as served:
        bring_up(TAP, HOST)
        with served.guest(queues=2) as guest:
            assert guest.front_end.features & NetFeature.HOST_USO
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.settimeout(BOUND_S)
                server.bind((HOST, 999))
                text = bytes(range(250))
                header = HEADER.pack(
                    flags=NEEDS_CSUM,
                    gso_type=GSO_UDP_L4,
                    hdr_len=42,
                    gso_size=100,
                    csum_start=34,
                    csum_offset=6,
                    num_buffers=0,
                )
                packet = datagram(GUEST, HOST, 999, text)
                guest.do(1, [header, b"\xff" * 6 + MAC + b"\x08\0" + packet])
                assert [server.recv(2000) for _ in range(3)] == [
                    text[:100],
                    text[100:200],
                    text[200:],
                ]


@needs_uso
def test_the_interface_leaves_segments_of_udp_to_a_driver_that_takes_them() -> None:
    with serve({"type": "net", "backend": "tap", "interface": TAP}) as served:
        bring_up(TAP, HOST)
        known_to_host(GUEST, MAC)
        with served.guest(queues=3) as guest:
            guest.keep_filled(0, count=64, size=SIZE)
            text = bytes(range(250))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
                client.sendto(text, (GUEST, 4000))
                header, whole = udp_frame(guest)
                assert (header["gso_type"], header["gso_size"]) == (GSO_UDP_L4, 100)
                assert whole == text
                # A driver may switch that off again.
                off = int(Control.OFFLOADS_SET).to_bytes(2, "big") + bytes(8)
                assert guest.do(2, [off], [1]).data[0] == bytes([CONTROL_OK])
                client.sendto(text, (GUEST, 4000))
                cut = [udp_frame(guest) for _ in range(3)]
                assert [data for _, data in cut] == [text[:100], text[100:200], text[200:]]
                assert {header["gso_type"] for header, _ in cut} == {0}


def udp_frame(guest: Guest) -> tuple[dict[str, int], bytes]:
    """The next frame with UDP: its header, and what it carries."""
    while True:
        data = guest.receive(0)
        header, frame = HEADER.unpack(data), data[HEADER.size :]
        if frame[12:14] == b"\x08\0" and frame[23] == 17:
            return header, frame[42:]
