"""Linux's network driver with a control queue that is ours: what it asks for is what it gets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.devices.network_of_ours import captured
from vuproc.spec.virtio import DeviceId
from vuproc.testing import serve
from vuproc.testing.vms import boot_uml

pytestmark = pytest.mark.timeout(150)

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULES = ("virtio_net", "8021q")
OURS, NEW, THEIRS = b"\x52\x54\0\0\0\1", b"\x52\x54\0\0\0\3", b"\x52\x54\0\0\0\2"
BROADCAST = b"\xff" * 6
ALL_HOSTS, OTHER_GROUP = b"\1\0\x5e\0\0\1", b"\1\0\x5e\7\7\7"
"""The groups of 224.0.0.1, which each interface with an address is in, and of none here."""
KIND = b"\x88\xb5"
SCRIPT = """
came() { while [ $(cat /sys/class/net/eth0/statistics/rx_packets) -lt $1 ]; do usleep 5000; done; }
ip link set eth0 up
ip addr add 10.9.8.2/24 dev eth0
say up $(cat /sys/class/net/eth0/address)
came 3
ip link set eth0 promisc on
say promiscuous yes
came 9
ip link set eth0 promisc off
ip link set eth0 address 52:54:00:00:00:03
say moved $(cat /sys/class/net/eth0/address)
came 12
vconfig add eth0 5
say tagged yes
came 13
"""


def frame(number: int, to: bytes, tag: int | None = None) -> bytes:
    inside = b"" if tag is None else b"\x81\0" + tag.to_bytes(2, "big")
    return to + THEIRS + inside + KIND + bytes([number]) + bytes(45)


def test_linux_has_the_frames_that_it_asks_for(tmp_path: Path) -> None:
    device, here, capture = (tmp_path / name for name in ("device", "here", "all.pcap"))
    file = {
        "type": "net",
        "backend": "datagram",
        "path": str(device),
        "peer": str(here),
        "capture": str(capture),
        "mac": OURS.hex(":"),
    }
    expected: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, serve(file) as served:
        sock.bind(str(here))

        def send(*frames: bytes, passing: list[bytes]) -> None:
            for each in frames:
                sock.sendto(each, str(device))
            expected.extend(passing)

        with boot_uml({served.socket: DeviceId.NET}, script=SCRIPT, modules=MODULES) as guest:
            assert guest.wait_for("up").endswith(OURS.hex(":"))
            some = [
                frame(n, to)
                for n, to in enumerate((THEIRS, OTHER_GROUP, OURS, ALL_HOSTS, BROADCAST))
            ]
            send(*some, passing=some[2:])
            guest.wait_for("promiscuous")
            tagged = frame(9, OURS, 7)
            send(*some, tagged, passing=[*some, tagged])
            guest.wait_for("moved")
            served.wait_worker(other_than=served.kill_worker())
            send(*some, frame(6, NEW), passing=[some[3], some[4], frame(6, NEW)])
            guest.wait_for("tagged")
            send(frame(7, NEW, 6), frame(8, NEW, 5), passing=[frame(8, NEW, 5)])
            said = guest.finish().values
    assert said["moved"] == NEW.hex(":")
    assert [each for each in captured(capture) if each[6:12] == THEIRS] == expected
    assert not [line for line in served.lines if "refused" in line]


def test_linux_drives_one_of_several_pairs() -> None:
    """It has one CPU here, and says by the control queue how many pairs it uses."""
    with serve({"type": "net", "backend": "loopback", "pairs": 3}) as served:
        script = """
ip link set eth0 up
ip addr add 10.9.8.2/24 dev eth0
arping -c 1 -w 1 -I eth0 10.9.8.9 || true
say queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
say back $(cat /sys/class/net/eth0/statistics/rx_packets)
"""
        devices = {served.socket: DeviceId.NET}
        with boot_uml(devices, script=script, modules=("virtio_net",)) as guest:
            said = guest.finish().values
        queues = served.status().queues
    assert int(said["back"]) > 0
    assert said["queues"] == "1"
    assert queues[6].requests > 0
    assert not [line for line in served.lines if "refused" in line]


def test_linux_pings_a_network_in_python() -> None:
    script = """
ip link set eth0 up
ip addr add 10.9.8.2/24 dev eth0
say pong $(ping -c 5 -i 0.2 -s 1000 10.9.8.1 | grep received)
"""
    with serve({"type": f"{EXAMPLES}/pong.py:Pong"}) as served:
        devices = {served.socket: DeviceId.NET}
        with boot_uml(devices, script=script, modules=("virtio_net",)) as guest:
            assert guest.finish().values["pong"].startswith("5 packets transmitted, 5 packets rec")
    assert not [line for line in served.lines if "ERROR" in line]
