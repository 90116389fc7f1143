"""Two network devices, a stream and a datagram, with QEMU's own sockets and hub between them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from vuproc.spec.net import HEADER
from vuproc.testing import Guest, serve
from vuproc.testing.errors import NoCompletion
from vuproc.testing.vms import Qemu, clients

pytestmark = pytest.mark.timeout(120)

RX, TX = 0, 1
SIZE = 1526
BOUND_S = 30.0


def send(guest: Guest, frame: bytes) -> None:
    guest.do(TX, [bytes(HEADER.size), frame])


def received(guest: Guest) -> bytes:
    return guest.receive(RX)[HEADER.size :]


def arrives(guest: Guest) -> bool:
    """Whether a frame comes before long."""
    try:
        guest.receive(RX, 0.1)
    except NoCompletion:
        return False
    return True


def frame(number: int, size: int) -> bytes:
    return bytes.fromhex("020000000002020000000001") + b"\x88\xb5" + bytes([number]) * (size - 14)


def hub(folder: Path) -> list[str]:
    """QEMU without a machine: what comes to one of its sockets leaves by the other."""
    stream = f"stream,id=s,server=on,addr.type=unix,addr.path={folder}/stream"
    datagram = f"dgram,id=d,local.type=unix,local.path={folder}/theirs"
    datagram += f",remote.type=unix,remote.path={folder}/ours"
    command = [str(clients.qemu(Qemu.INSTALLED)), "-machine", "none", "-nodefaults"]
    command += ["-display", "none", "-monitor", "none"]
    for number, netdev in enumerate((stream, datagram)):
        command += ["-netdev", netdev]
        command += ["-netdev", f"hubport,id=h{number},hubid=0,netdev={'sd'[number]}"]
    return command


def test_frames_pass_through_qemus_sockets_both_ways(tmp_path: Path) -> None:
    net = {"type": "net", "backend": "datagram"}
    datagram = {**net, "path": str(tmp_path / "ours"), "peer": str(tmp_path / "theirs")}
    stream = {**net, "backend": "stream", "path": str(tmp_path / "stream")}
    with (
        serve(datagram) as there,
        there.guest(queues=2) as far,
        subprocess.Popen(hub(tmp_path), stderr=subprocess.PIPE) as qemu,
    ):
        try:
            with (
                serve(stream) as here,
                here.guest(queues=2) as near,
            ):
                for guest in (near, far):
                    guest.keep_filled(RX, count=64, size=SIZE)
                # QEMU is there once it has passed one on; what comes before is dropped.
                deadline = time.monotonic() + BOUND_S
                while not arrives(far):
                    assert time.monotonic() < deadline
                    send(near, frame(0, 60))
                for number in range(1, 20):
                    size = 60 + 70 * number
                    send(near, frame(number, size))
                    send(far, frame(100 + number, size))
                    while (data := received(far)) != frame(number, size):
                        assert data == frame(0, 60)
                    assert received(near) == frame(100 + number, size)
        finally:
            qemu.kill()
