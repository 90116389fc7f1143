"""Linux's own sockets: programs in a guest and on the host talk while workers are killed."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import pytest

from tests.guest.programs import build
from vuproc.devices.vsock import Vsock
from vuproc.testing import Served, serve
from vuproc.testing.vms import VhostUserDevice, boot_qemu, boot_uml

LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
COUNT = 1 << 30 if LONG else 12 << 20
"""Bytes each way."""
MESSAGES = 2000 if LONG else 60
KILL_EVERY_S = 0.05
BLOCK = 65521
WAIT_S = 3600.0 if LONG else 120.0
SOURCE = Path(__file__).with_name("sockets.c")
MODULES = ("vmw_vsock_virtio_transport",)

pytestmark = pytest.mark.timeout(WAIT_S * 2)

SCRIPT = f"""
say refused $(sockets connect 4999 1)
say up $(sockets connect 5000 {COUNT})
sockets listen 6000 {COUNT}
say messages $(sockets messages 5001 {MESSAGES})
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's program."""
    return build(SOURCE, tmp_path_factory.mktemp("guest"))


def blocks(count: int) -> Iterator[bytes]:
    """The bytes that each side sends: `pattern` of sockets.c."""
    x, first = 1, bytearray()
    for _ in range(BLOCK):
        x = (x * 1103515245 + 12345) & 0xFFFFFFFF
        first.append(x >> 16 & 0xFF)
    number = int.from_bytes(first, "big")
    for turn in range(-(-count // BLOCK)):
        block = number ^ int.from_bytes(bytes([turn & 0xFF]) * BLOCK, "big")
        yield block.to_bytes(BLOCK, "big")[: count - turn * BLOCK]


class Program:
    """A program of the host: it sends one half at once, and the other after the guest's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.settimeout(WAIT_S)

    def converse(self, greeting: bytes = b"") -> int:
        """Receive until the end; how many bytes came, all of them as they should be."""
        ended = threading.Event()
        sender = threading.Thread(target=self._send, args=(ended,))
        sender.start()
        try:
            with closing(self._socket.makefile("rb")) as stream:
                for expected in blocks(COUNT):
                    assert stream.read(len(expected)) == expected
                assert stream.read(1) == b""
        finally:
            ended.set()
            sender.join()
            self._socket.close()
        return COUNT

    def _send(self, ended: threading.Event) -> None:
        for number, block in enumerate(blocks(COUNT)):
            if number * BLOCK >= COUNT // 2:
                ended.wait(WAIT_S)
            self._socket.sendall(block)
        self._socket.shutdown(socket.SHUT_WR)

    def echo(self) -> int:
        """Send each message back until the end; how many they were."""
        with closing(self._socket) as sock:
            for count in range(MESSAGES + 1):
                message = sock.recv(1 << 20)
                if not message:
                    return count
                sock.send(message)
        raise AssertionError("more messages than were sent")


def listening(path: Path, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A program listens on a port of the host."""
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(f"{path}_{port}")
    listener.listen(4)
    listener.settimeout(WAIT_S)
    return listener


def connected(listener: socket.socket) -> socket.socket:
    """The guest's connection, once it is made: a worker that dies over that makes another."""
    accepted, _ = listener.accept()
    accepted.settimeout(WAIT_S)
    accepted.recv(1, socket.MSG_PEEK)
    return accepted


def dialled(path: Path, port: int) -> Program:
    """A program that has connected to the guest."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(WAIT_S)
    sock.connect(str(path))
    sock.sendall(b"CONNECT %d\n" % port)
    answer = b""
    while not answer.endswith(b"\n"):
        byte = sock.recv(1)
        assert byte, "the guest has refused"
        answer += byte
    assert answer.startswith(b"OK ")
    return Program(sock)


def kill_until_done(served: Served, talk: Future[int]) -> int:
    """What the conversation gives; workers are killed meanwhile."""
    kills = 0
    while not talk.done():
        served.kill_worker()
        kills += 1
        wait([talk], KILL_EVERY_S)
    print(f"{kills} workers were killed")
    assert kills
    return talk.result()


@pytest.mark.parametrize("machine", ["uml", "qemu"])
def test_bytes_and_messages_arrive_while_workers_are_killed(
    machine: str, program: Path, tmp_path: Path
) -> None:
    path = tmp_path / "vsock"
    cid = 1234
    with (
        closing(listening(path, 5000)) as streams,
        closing(listening(path, 5001, socket.SOCK_SEQPACKET)) as packets,
        serve({"type": "vsock", "path": str(path), "cid": cid}) as served,
        ThreadPoolExecutor(1) as pool,
    ):
        if machine == "uml":
            devices = {served.socket: Vsock.device_id}
            guest = boot_uml(devices, script=SCRIPT, modules=MODULES, programs=[program])
        else:
            device = VhostUserDevice(socket=served.socket, driver="vhost-user-vsock-pci")
            modules = ("virtio_pci", *MODULES)
            guest = boot_qemu([device], script=SCRIPT, modules=modules, programs=[program])
        with guest:
            guest.wait_for("refused")
            talk = pool.submit(Program(connected(streams)).converse)
            assert kill_until_done(served, talk) == COUNT
            guest.wait_for("listens")
            talk = pool.submit(dialled(path, 6000).converse)
            assert kill_until_done(served, talk) == COUNT
            talk = pool.submit(Program(connected(packets)).echo)
            assert kill_until_done(served, talk) == MESSAGES
            said = guest.finish(WAIT_S).values
    assert said["refused"] == "connect: Connection reset by peer"
    assert said["up"] == f"received={COUNT}"
    assert said["received"] == str(COUNT)
    assert said["messages"] == f"messages={MESSAGES}"
    assert not [line for line in served.lines if "ERROR" in line]
