"""The driver's side of a socket device, packet by packet, for tests."""

from __future__ import annotations

import itertools
import socket
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vuproc.spec.vsock import EVENT, HEADER, HOST_CID, RX, TX, Op, SeqFlag, VsockType

CID = 3
BUF_ALLOC = 256 << 10
ROOM = 8
"""Descriptors that a packet may take."""
BUFFER = 4096
"""Bytes of a receive buffer, as Linux has them."""


@dataclass(frozen=True)
class Packet:
    """A packet that the device has sent."""

    src_port: int
    dst_port: int
    kind: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int
    data: bytes
    src_cid: int = HOST_CID


@dataclass
class Driver:
    """Sends and receives packets on the queues of `guest`, a `vuproc.testing.Guest` as a rule."""

    guest: Any
    buffers: int = 64
    size: int = BUFFER
    ports: itertools.count[int] = field(default_factory=lambda: itertools.count(1000))

    _offered: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=512))

    def __post_init__(self) -> None:
        """Give the device its buffers."""
        self.guest.keep_filled(RX, count=self.buffers, size=self.size)
        if EVENT in self.guest.queues:
            self.guest.keep_filled(EVENT, count=8, size=8)

    def send(
        self,
        op: int,
        src_port: int = 1,
        dst_port: int = 1,
        data: bytes = b"",
        *,
        pieces: int = 1,
        **fields: int,
    ) -> tuple[int, int]:
        """Send a packet, its data in so many descriptors; the request's token."""
        header = {
            "src_cid": CID,
            "dst_cid": HOST_CID,
            "src_port": src_port,
            "dst_port": dst_port,
            "len": len(data),
            "type": VsockType.STREAM,
            "op": op,
            "buf_alloc": BUF_ALLOC,
        }
        whole = HEADER.pack(**header | fields)
        step = max(1, -(-len(data) // pieces))
        parts = [data[at : at + step] for at in range(0, len(data), step)]
        queue = self.guest.queues[TX]
        if queue.ring.free < ROOM:
            queue.reap()
            while queue.ring.free < ROOM:
                self.guest.wait(self._offered.popleft())
        token: tuple[int, int] = self.guest.submit(TX, [whole, *parts])
        self._offered.append(token)
        return token

    @property
    def last(self) -> tuple[int, int]:
        """The token of the last request."""
        return self._offered[-1]

    def receive(self) -> Packet:
        """The next packet."""
        return parsed(self.guest.receive(RX))

    def expect(self, op: int) -> Packet:
        """The next packet that says something else than credit, which is to be this."""
        while (packet := self.receive()).op in (Op.CREDIT_UPDATE, Op.CREDIT_REQUEST):
            if op == packet.op:
                return packet
        assert Op(packet.op) == op
        return packet


def parsed(content: bytes) -> Packet:
    """What a receive buffer holds."""
    header = HEADER.unpack(content)
    data = content[HEADER.size :]
    assert (header["dst_cid"], header["len"]) == (CID, len(data))
    names = ("src_port", "dst_port", "op", "flags", "buf_alloc", "fwd_cnt", "src_cid")
    return Packet(kind=header["type"], data=data, **{name: header[name] for name in names})


@dataclass
class Stream:
    """A connection of the driver's, with its credit."""

    driver: Driver
    ours: int
    theirs: int
    kind: int = VsockType.STREAM
    buf_alloc: int = BUF_ALLOC
    sent: int = 0
    fwd_cnt: int = 0
    peer_alloc: int = 0
    peer_fwd: int = 0
    shut: int = 0
    reset: bool = False
    received: bytearray = field(default_factory=bytearray)
    messages: list[bytes] = field(default_factory=list)

    @property
    def credit(self) -> int:
        """Bytes that may be sent."""
        return self.peer_alloc - (self.sent - self.peer_fwd)

    def say(self, op: int, data: bytes = b"", *, flags: int = 0, pieces: int = 1) -> None:
        """Send a packet."""
        self.driver.send(
            op,
            self.ours,
            self.theirs,
            data,
            pieces=pieces,
            type=self.kind,
            flags=flags,
            buf_alloc=self.buf_alloc,
            fwd_cnt=self.fwd_cnt & 0xFFFFFFFF,
        )

    def send(self, data: bytes, *, flags: int = 0, pieces: int = 1) -> None:
        """Send data as credit allows, in packets of at most 64 KiB."""
        view = memoryview(data)
        while view:
            while self.credit <= 0:
                self.take()
            part = bytes(view[: min(self.credit, 65536)])
            view = view[len(part) :]
            self.sent += len(part)
            self.say(Op.RW, part, flags=0 if view else flags, pieces=pieces)

    def take(self) -> Packet:
        """Receive a packet of this connection and act on it."""
        packet = self.driver.receive()
        assert (packet.src_port, packet.dst_port) == (self.theirs, self.ours)
        self.see(packet)
        return packet

    def see(self, packet: Packet) -> None:
        """Act on a packet of this connection."""
        self.peer_alloc, self.peer_fwd = packet.buf_alloc, packet.fwd_cnt
        match packet.op:
            case Op.RW:
                self.received += packet.data
                self.fwd_cnt += len(packet.data)
                if packet.flags & SeqFlag.EOM:
                    self.messages.append(bytes(self.received))
                    self.received.clear()
            case Op.SHUTDOWN:
                self.shut |= packet.flags
            case Op.RST:
                self.reset = True
            case Op.CREDIT_REQUEST:
                self.say(Op.CREDIT_UPDATE)

    def read(self, count: int) -> bytes:
        """So many bytes; credit is given back as they come."""
        given = self.fwd_cnt
        while len(self.received) < count:
            self.take()
            if self.fwd_cnt - given > self.buf_alloc // 4:
                given = self.fwd_cnt
                self.say(Op.CREDIT_UPDATE)
        self.say(Op.CREDIT_UPDATE)
        data = bytes(self.received[:count])
        del self.received[:count]
        return data


def listening(path: Path, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A program of the host that listens on a port."""
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(f"{path}_{port}")
    listener.listen(16)
    listener.settimeout(30)
    return listener


def connect(
    driver: Driver, listener: socket.socket, port: int, kind: int = VsockType.STREAM
) -> tuple[Stream, socket.socket]:
    """Have the guest connect to a program of the host: both ends."""
    stream = Stream(driver, next(driver.ports), port, kind)
    stream.say(Op.REQUEST)
    accepted, _ = listener.accept()
    accepted.settimeout(30)
    packet = stream.take()
    assert packet.op == Op.RESPONSE
    return stream, accepted


def dial(driver: Driver, path: Path, port: int, more: bytes = b"") -> tuple[Stream, socket.socket]:
    """Have a program of the host connect to the guest, with the first bytes in the same write."""
    program = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    program.settimeout(30)
    program.connect(str(path))
    program.sendall(b"CONNECT %d\n" % port + more)
    request = driver.expect(Op.REQUEST)
    assert request.dst_port == port
    stream = Stream(driver, port, request.src_port)
    stream.see(request)
    stream.say(Op.RESPONSE)
    assert line(program) == b"OK %d\n" % request.src_port
    return stream, program


def line(program: socket.socket) -> bytes:
    """A line that a program is sent, and no byte more."""
    came = b""
    while not came.endswith(b"\n"):
        byte = program.recv(1)
        assert byte
        came += byte
    return came
