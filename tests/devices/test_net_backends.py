"""The network device's back-ends, with the built-in driver: taps, sockets, captures, the link."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.devices.network_of_ours import BOUND_S, bring_up, datagram, network, wire
from vuproc.cli.main import main
from vuproc.devices.net import Net
from vuproc.devices.net_options import NetOptions
from vuproc.devices.net_pcap import HEADER_BYTES, RECORD_BYTES
from vuproc.spec.net import CONFIG, HEADER, LINK_UP, NetFeature
from vuproc.testing import Guest, Served, serve
from vuproc.testing.errors import NoCompletion, ServeFailed

pytestmark = pytest.mark.timeout(120)

RX, TX = 0, 1
SIZE = 1526
TAP = "vutap0"
SIOCGIFHWADDR = 0x8927
OURS, THEIRS = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"


def frame(number: int, size: int = 60) -> bytes:
    """One of a kind that no protocol of the host's takes."""
    body = number.to_bytes(4, "big") + bytes((number + i) & 0xFF for i in range(size - 18))
    return THEIRS + OURS + b"\x88\xb5" + body


def send(guest: Guest, data: bytes, header: bytes = bytes(HEADER.size), queue: int = TX) -> None:
    guest.do(queue, [header, data])


def received(guest: Guest, queue: int = RX) -> bytes:
    """The next frame that the tests have sent, of as many buffers as there are."""
    while True:
        data = guest.receive(queue)
        count = HEADER.unpack(data[: HEADER.size])["num_buffers"]
        whole = data[HEADER.size :] + b"".join(guest.receive(queue) for _ in range(count - 1))
        if whole[12:14] == b"\x88\xb5":
            return whole


def heard(here: socket.socket) -> bytes:
    while True:
        data = here.recv(65536)
        if data[12:14] == b"\x88\xb5":
            return data


def dropped(served: Served, queue: int) -> int:
    return served.status().queues[queue].counters["dropped"]


# A tap.


@pytest.fixture
def net() -> Iterator[None]:
    with network():
        yield


@pytest.mark.parametrize("engine", ["native", "python"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_tap_has_both_ways_over_a_death(net: None, packed: bool, engine: str) -> None:
    file = {"type": "net", "backend": "tap", "interface": TAP, "engine": engine}
    with serve(file) as served:
        bring_up(TAP)
        with wire(TAP) as host, served.guest(queues=2, packed=packed) as guest:
            guest.keep_filled(RX, count=32, size=SIZE)
            for turn in range(2):
                send(guest, frame(turn))
                assert heard(host) == frame(turn)
                host.send(frame(10 + turn, 1514))
                assert received(guest) == frame(10 + turn, 1514)
                if turn == 0:
                    served.wait_worker(other_than=served.kill_worker())
        assert not [line for line in served.lines if "ERROR" in line]


def test_a_tap_outlives_a_master(net: None) -> None:
    file = {"type": "net", "backend": "tap", "interface": TAP}
    with serve(file, arguments=["--supervised"]) as served:
        bring_up(TAP)
        with wire(TAP) as host, served.guest(queues=2) as guest:
            send(guest, frame(1))
            assert heard(host) == frame(1)
            before = served.status().pid
            os.kill(before, 9)
            send(guest, frame(2))
            assert heard(host) == frame(2)
            assert served.status().pid != before


def test_what_a_driver_leaves_to_the_interface_is_done_there(net: None) -> None:
    """A checksum, which the driver has left to be filled in."""
    offloads = NetFeature.CSUM | NetFeature.GUEST_CSUM | NetFeature.HOST_TSO4
    with serve({"type": "net", "backend": "tap", "interface": TAP}) as served:
        bring_up(TAP, "10.9.8.1")
        with served.guest(queues=2) as guest:
            assert guest.front_end.features & offloads == offloads
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.settimeout(BOUND_S)
                server.bind(("10.9.8.1", 999))
                address = mac_of(TAP)
                text = b"summed up by the kernel"
                packet = datagram("10.9.8.2", "10.9.8.1", 999, text)
                header = HEADER.pack(
                    flags=1,
                    gso_type=0,
                    hdr_len=0,
                    gso_size=0,
                    csum_start=34,
                    csum_offset=6,
                    num_buffers=0,
                )
                send(guest, address + OURS + b"\x08\0" + packet, header)
                assert server.recv(100) == text


def mac_of(name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, SIOCGIFHWADDR, struct.pack("16s24x", name.encode()))
    return answer[18:24]


def test_many_pairs_are_many_queues_of_one_interface(net: None) -> None:
    file = {"type": "net", "backend": "tap", "interface": TAP, "pairs": 2}
    with serve(file) as served:
        bring_up(TAP)
        with wire(TAP) as host, served.guest(queues=4) as guest:
            for queue in (1, 3):
                send(guest, frame(queue), queue=queue)
                assert heard(host) == frame(queue)


@pytest.mark.parametrize("engine", ["native", "python"])
def test_c48_hostile_headers_are_the_kernels_to_refuse(net: None, engine: str) -> None:
    file = {"type": "net", "backend": "tap", "interface": TAP, "engine": engine}
    with serve(file) as served:
        bring_up(TAP)
        with wire(TAP) as host, served.guest(queues=2) as guest:
            before = dropped(served, TX)
            for header in (b"\xff" * 12, b"\x01\x05" + bytes(10), bytes(5)):
                send(guest, frame(1), header)
            send(guest, b"")
            send(guest, frame(2))
            assert heard(host)[:18] in (frame(2)[:18], frame(1)[:18])
            assert dropped(served, TX) > before
        assert not [line for line in served.lines if "ERROR" in line]


def test_the_network_hears_where_the_guest_is_now(net: None) -> None:
    with serve({"type": "net", "backend": "tap", "interface": TAP}) as served:
        bring_up(TAP)
        with wire(TAP) as host, served.guest(queues=2) as guest:
            guest.front_end.request("SEND_RARP", value=int.from_bytes(OURS, "little"))
            while True:
                data = host.recv(2000)
                if data[12:14] == b"\x80\x35":
                    break
            assert data[:12] == b"\xff" * 6 + OURS
            assert data[14:42] == struct.pack(
                "!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 3, OURS, bytes(4), OURS, bytes(4)
            )


# Sockets.


def test_a_stream_has_frames_with_their_lengths_and_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "switch.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(BOUND_S)
        listener.bind(str(path))
        listener.listen(4)
        file = {"type": "net", "backend": "stream", "path": str(path)}
        with serve(file) as served, served.guest(queues=2) as guest:
            guest.keep_filled(RX, count=32, size=SIZE)
            for turn in range(2):
                switch, _ = listener.accept()
                with switch:
                    switch.settimeout(BOUND_S)
                    send(guest, frame(turn, 1514))
                    assert switch.recv(4, socket.MSG_WAITALL) == (1514).to_bytes(4, "big")
                    assert switch.recv(1514, socket.MSG_WAITALL) == frame(turn, 1514)
                    two = b"".join(
                        len(f).to_bytes(4, "big") + f for f in (frame(7), frame(8, 1000))
                    )
                    for byte in two[:70]:
                        switch.send(bytes([byte]))
                    switch.sendall(two[70:])
                    assert [received(guest), received(guest)] == [frame(7), frame(8, 1000)]
                    if turn == 0:
                        # Nobody can tell where a worker that died was in a frame.
                        served.wait_worker(other_than=served.kill_worker())
                        assert switch.recv(1) == b""
            assert not [line for line in served.lines if "ERROR" in line]


def test_c48_a_stream_that_makes_no_sense_is_hung_up_on(tmp_path: Path) -> None:
    path = tmp_path / "switch.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(BOUND_S)
        listener.bind(str(path))
        listener.listen(4)
        file = {"type": "net", "backend": "stream", "path": str(path)}
        with serve(file), listener.accept()[0] as switch:
            switch.settimeout(BOUND_S)
            switch.sendall(b"\xff\xff\xff\xff")
            assert switch.recv(1) == b""


def test_datagrams_go_to_the_peer_and_come_from_it_over_a_death(tmp_path: Path) -> None:
    path, peer = tmp_path / "guest.sock", tmp_path / "peer.sock"
    options = {"path": str(path), "peer": str(peer)}
    with serve({"type": "net", "backend": "datagram", **options}) as served:
        with served.guest(queues=2) as guest:
            guest.keep_filled(RX, count=32, size=SIZE)
            send(guest, frame(1))  # nobody is there
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.settimeout(BOUND_S)
                other.bind(str(peer))
                for turn in range(2):
                    send(guest, frame(turn, 500))
                    assert other.recv(2000) == frame(turn, 500)
                    for data in (b"", bytes(70_000), frame(9)):
                        other.sendto(data, str(path))
                    assert received(guest) == frame(9)
                    served.wait_worker(other_than=served.kill_worker())
            assert dropped(served, TX) == 1
    assert path.exists()
    # What the last one has left is taken over, and what somebody has is not.
    with serve({"type": "net", "backend": "datagram", **options}):
        refused = serve({"type": "net", "backend": "datagram", **options})
        with pytest.raises(ServeFailed, match="somebody has this socket"), refused:
            pass


def test_what_is_no_socket_is_left_where_a_socket_was_to_be(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    options = {"path": str(path), "peer": str(tmp_path / "peer")}
    refused = serve({"type": "net", "backend": "datagram", **options})
    with pytest.raises(ServeFailed, match="address already in use"), refused:
        pass
    assert path.read_text() == "mine"


# Captures.


def test_what_passes_is_recorded_as_tcpdump_has_it(tmp_path: Path) -> None:
    path = tmp_path / "all.pcap"
    for turn in range(2):
        file = {"type": "net", "backend": "loopback", "capture": str(path)}
        with serve(file) as served, served.guest(queues=2) as guest:
            guest.keep_filled(RX, count=8, size=SIZE)
            send(guest, frame(turn, 100))
            assert received(guest) == frame(turn, 100)
    data = path.read_bytes()
    assert struct.unpack("<IHHiIII", data[:HEADER_BYTES]) == (0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    step = RECORD_BYTES + 100
    assert len(data) == HEADER_BYTES + 4 * step
    for at, number in zip(range(HEADER_BYTES, len(data), step), (0, 0, 1, 1), strict=True):
        seconds, _, here, whole = struct.unpack("<IIII", data[at : at + RECORD_BYTES])
        assert seconds > 1_700_000_000 and (here, whole) == (100, 100)
        assert data[at + RECORD_BYTES : at + step] == frame(number, 100)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_capture_is_replayed_as_there_are_buffers(tmp_path: Path, order: str) -> None:
    path = tmp_path / "some.pcap"
    frames = [frame(n, 60 + n) for n in range(300)]
    records = [struct.pack(f"{order}IIII", 1, n, len(f), len(f)) + f for n, f in enumerate(frames)]
    head = struct.pack(f"{order}IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(head + b"".join(records) + records[0][:20])
    file = {"type": "net", "backend": "pcap", "path": str(path)}
    with serve(file) as served, served.guest(queues=2) as guest:
        guest.keep_filled(RX, count=16, size=SIZE)
        assert [received(guest) for _ in range(200)] == frames[:200]
        served.wait_worker(other_than=served.kill_worker())
        # The one that was under way may be lost, and none comes twice.
        rest = [frames.index(received(guest)) for _ in range(99)]
        assert rest == sorted(set(rest)) and rest[0] in (200, 201)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no capture"),
        (b"\x0a\x0d\x0d\x0a" + bytes(60), "no capture"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 113), "not Ethernet's"),
    ],
)
def test_a_file_that_is_no_capture_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file").write_bytes(content)
    options = NetOptions(backend="pcap", path=str(tmp_path / "file"))
    with pytest.raises(Exception, match=reason):
        Net(options).shared_files()
    if content:
        with pytest.raises(Exception, match="something else in it"):
            Net(NetOptions(capture=str(tmp_path / "file"))).shared_files()


# The link.


def test_a_link_that_is_down_is_told_and_stays_so(tmp_path: Path) -> None:
    file = tmp_path / "net.yaml"
    file.write_text("socket: ./s\ndevice: {type: net, backend: loopback}\n")
    with serve(file, arguments=["--supervised"]) as served:
        with served.guest(queues=2, channel=True) as guest:
            guest.keep_filled(RX, count=8, size=SIZE)
            assert main(["link", "down", str(file)]) == 0
            config = guest.wait_config_change(size=CONFIG.size)
            assert CONFIG.unpack(config)["status"] == 0
            send(guest, frame(1))
            assert dropped(served, TX) == 1
            served.wait_worker(other_than=served.kill_worker())
            os.kill(served.status().pid, 9)
            send(guest, frame(2))
            with pytest.raises(NoCompletion):
                guest.receive(RX, 0.1)
            assert CONFIG.unpack(guest.config(CONFIG.size))["status"] == 0
            assert main(["link", "up", str(file)]) == 0
            assert CONFIG.unpack(guest.config(CONFIG.size))["status"] == LINK_UP
            send(guest, frame(3))
            assert received(guest) == frame(3)


def test_only_a_network_device_has_a_link(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "rng.yaml"
    file.write_text("socket: ./s\ndevice: {type: rng}\n")
    with serve(file), pytest.raises(SystemExit):
        main(["link", "down", str(file)])
    assert "only a network device has a link" in capsys.readouterr().err


# Options.


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"backend": "tap"}, "tap needs interface"),
        ({"backend": "tap", "interface": "x" * 16}, "15"),
        ({"backend": "stream"}, "stream needs path"),
        ({"backend": "datagram", "path": "./a"}, "datagram needs peer"),
        ({"backend": "null", "path": "./a"}, "null has no path"),
        ({"backend": "stream", "path": "./a", "pairs": 2}, "stream has one pair"),
        ({"backend": "stream", "path": "/" + "x" * 120}, "at most 107 bytes"),
        ({"backend": "pcap", "path": "/nowhere/a"}, "/nowhere/a: No such file"),
        ({"capture": "/nowhere/a"}, "/nowhere/a: No such file"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ServeFailed, match=reason), serve({"type": "net", **options}):
        pass


def test_nobody_goes_on_with_the_files_of_another_back_end(tmp_path: Path) -> None:
    one, two = NetOptions(), NetOptions(backend="loopback")
    left = Net(one).shared_files()
    assert Net(one).goes_on_with(left)
    assert not Net(two).goes_on_with(left)
    for file in left.values():
        file.close()
