"""What a packet from the guest does (virtio 1.3 section 5.10.6)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from vuproc.device import Device
from vuproc.devices.vsock_connection import (
    CALLING,
    ENDING,
    FREE,
    OPEN,
    OWES_RESPONSE,
    Incoming,
    Violation,
)
from vuproc.devices.vsock_host import Host
from vuproc.devices.vsock_switch import Switch
from vuproc.devices.vsock_table import Stored, Table
from vuproc.spec.vsock import BOTH, HEADER, HOST_CID, TX, Op, Shutdown, VsockType

if TYPE_CHECKING:
    from vuproc.shm.request import Request

_HEADER = struct.Struct(HEADER.format)
_KNOWN = frozenset(Op) - {Op.INVALID}
KINDS = {
    VsockType.STREAM: socket.SOCK_STREAM,
    VsockType.SEQPACKET: socket.SOCK_SEQPACKET,
}


AT_ONCE = 64
"""Packets that are taken before others get their turn."""


def nothing() -> None:
    """Do nothing."""


class Step(NamedTuple):
    """What a packet changes in the table, and what is to be done then, which a successor can tell
    from the table.
    """

    changes: Sequence[tuple[Stored, Mapping[str, int]]] = ()
    then: Callable[[], object] = nothing


class Packets:
    """The guest's packets, for the connections of `switch`; port N is the socket `PATH_N`.

    Each is acted on once, whoever dies: what it changes counts once the driver has seen the end of
    its request (`Table.finish`). Whatever is done before that does no harm if it is done again.
    """

    def __init__(self, device: Device, table: Table, switch: Switch, path: str) -> None:
        self.kinds: frozenset[int] = frozenset({VsockType.STREAM})
        """Socket types that the driver may use."""
        self._device = device
        self._table = table
        self._switch = switch
        self._path = path
        self._stalled = False
        self._fed: dict[Host, None] = {}
        """Those that there is something for."""

    def run(self) -> None:
        """Take what there is, unless nobody could be told that it is refused."""
        self._stalled = self._switch.resets.crowded
        if self._stalled:
            return
        for _ in range(AT_ONCE):
            request, more = self._switch.streams.take(AT_ONCE)
            for host in self._switch.fed():
                self._feed(host)
            if request is None:
                if more:
                    self._device.call_soon(self.run)
                break
            step = self._act(request.read(HEADER.size), request)
            self._table.finish(self._device, request, *step.changes)
            step.then()
        else:
            self._device.call_soon(self.run)
        fed, self._fed = self._fed, {}
        for host in fed:
            host.send()
        self._switch.pump()
        self.go_on()

    def go_on(self) -> None:
        """Somebody was told something."""
        if self._stalled and not self._switch.resets.crowded:
            self._stalled = False
            self._device.call_soon(self.run)

    def _act(self, header: bytes, request: Request) -> Step:
        """What a packet changes."""
        if len(header) < HEADER.size:
            return self._drop()
        packet = Incoming(*_HEADER.unpack(header))
        if packet.src_cid != self._switch.cid:
            return self._drop()  # 5.10.6.3: the guest's is its own CID
        host = self._switch.by_ports.get((packet.src_port, packet.dst_port))
        if packet.op == Op.RST:
            return Step() if host is None else self._end(host, {}, told=True)
        if packet.dst_cid != HOST_CID or packet.kind not in self.kinds or packet.op not in _KNOWN:
            return self._refuse(packet)
        if packet.op == Op.REQUEST and host is None:
            return self._connect(packet)
        if host is None or host.connection.record.kind != packet.kind:
            return self._refuse(packet)
        try:
            return self._of(host, packet, request)
        except Violation:
            return self._end(host, {})

    def _of(self, host: Host, packet: Incoming, request: Request) -> Step:
        """A packet of a connection. Raises Violation."""
        if self._switch.streams.beyond_credit:
            raise Violation
        connection = host.connection
        record = connection.record
        if packet.op == Op.RESPONSE and record.state == CALLING:
            line = b"OK %d\n" % record.host_port
            connection.from_guest.put(0, line)
            credit = {"peer_alloc": packet.buf_alloc, "peer_fwd": packet.fwd_cnt}
            begun = {"state": OPEN, "out_end": len(line), "preamble": len(line)}
            return Step([(record, begun | credit)], partial(self._feed, host))
        if record.state != OPEN or packet.op in (Op.REQUEST, Op.RESPONSE):
            raise Violation
        data = b""
        if packet.op == Op.RW:
            if packet.length > connection.buf_alloc:
                raise Violation
            data = request.read(packet.length)
        changes = connection.take(packet, data)
        shut = changes.get("guest_shut", 0)
        if shut == BOTH:
            return self._end(host, changes)
        then = self._feed if packet.op == Op.RW or shut & Shutdown.SEND else self._switch.talk
        if shut & Shutdown.RECEIVE:
            then = self._deafen
        return Step([(record, changes)], partial(then, host))

    def _end(self, host: Host, changes: Mapping[str, int], *, told: bool = False) -> Step:
        """The guest is done with a connection: after a SHUTDOWN, which its `changes` are of, what
        it has sent is passed on still. `told`: it has said so by an RST.
        """
        record = host.connection.record
        goes_on = bool(changes) and host.connection.unsent
        ends: list[tuple[Stored, Mapping[str, int]]] = [
            (record, {**changes, "state": ENDING if goes_on else FREE})
        ]
        if not told:
            ends.append(self._switch.resets.add(record.host_port, record.guest_port, record.kind))
        return Step(ends, partial(self._empty if goes_on else self._switch.forget, host))

    def _connect(self, packet: Incoming) -> Step:
        """The guest asks for a program of the host.

        A worker that dies before the step is made leaves a connection that ends at once; the next
        one makes another.
        """
        try:
            sock = socket.socket(socket.AF_UNIX, KINDS[VsockType(packet.kind)])
        except OSError:
            return self._refuse(packet)  # there is no descriptor to be had
        sock.setblocking(False)
        try:
            sock.connect(f"{self._path}_{packet.dst_port}")
            found = self._switch.new_record(sock, packet.kind)
        except OSError:
            found = None
        if found is None:
            sock.close()
            return self._refuse(packet)
        slot, changes = found
        changes |= {"state": OPEN, "owes": OWES_RESPONSE}
        changes |= {"guest_port": packet.src_port, "host_port": packet.dst_port}
        changes |= {"peer_alloc": packet.buf_alloc, "peer_fwd": packet.fwd_cnt}
        begun = partial(self._switch.add, slot, sock)
        return Step([(self._table.records[slot], changes)], begun)

    def _refuse(self, packet: Incoming) -> Step:
        """An RST: nobody is there, or it is none of the kinds and operations that there are."""
        rst = self._switch.resets.add(packet.dst_port, packet.src_port, packet.kind, packet.dst_cid)
        return Step([rst])

    def _drop(self) -> Step:
        self._device.count_dropped(TX)
        return Step()

    # What follows.

    def _feed(self, host: Host) -> None:
        """There is something for the program, once all packets were looked at."""
        self._fed[host] = None

    def _deafen(self, host: Host) -> None:
        host.deafen()
        self._feed(host)

    def _empty(self, host: Host) -> None:
        """The guest does not know it any more."""
        self._switch.hang_up(host)
        host.look()
        self._feed(host)
