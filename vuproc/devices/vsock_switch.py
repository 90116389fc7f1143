"""The connections of a socket device: how they begin and end, and whose turn it is."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial

from vuproc.device import Device
from vuproc.devices.vsock_connection import (
    CALLING,
    FREE,
    GREETING,
    OPEN,
    OWES_REQUEST,
    Changes,
    Connection,
    blank,
    moved,
)
from vuproc.devices.vsock_delivery import Delivery
from vuproc.devices.vsock_host import Host, shut
from vuproc.devices.vsock_native import NativeVsock
from vuproc.devices.vsock_park import Park
from vuproc.devices.vsock_resets import Resets
from vuproc.devices.vsock_table import Record, Stored, Table
from vuproc.devices.vsock_transfer import Transfer
from vuproc.fd import HasFileno
from vuproc.spec.vsock import VsockType

PORT_FIRST, PORT_LAST = 1 << 30, (1 << 31) - 1
"""Ports that programs of the host have when they connect to the guest."""
LACK_S = 1.0
"""Until connections are taken again, after there was no descriptor for one."""
PACKETS_AT_ONCE = 64
"""Packets for the guest before others get their turn."""
STREAM_AT_ONCE = 64
"""Packets of one stream before another connection gets its turn."""
DEAD_MOST = 16
"""Sockets of ended connections that stay parked until they are swept out."""


class Switch:
    """All connections of `device`, whose guest has `cid`; programs connect to `listener`."""

    def __init__(
        self,
        device: Device,
        table: Table,
        park: Park,
        listener: HasFileno,
        cid: int,
        streams: NativeVsock,
    ) -> None:
        """`streams`: passes on the data of streams; it is told of each socket."""
        self.streams = streams
        self.delivery = Delivery(device, table)
        self.resets = Resets(table, cid)
        self.cid = cid
        self.by_ports: dict[tuple[int, int], Host] = {}
        """Those that a packet may be for, by the guest's port and ours."""
        self._device = device
        self._table = table
        self._head = table.head
        self._park = park
        self._listener = socket.socket(fileno=os.dup(listener.fileno()))
        self._listening = False
        self._wanted = False
        self._lacks = False
        """There was no descriptor for a connection."""
        self._transfer = Transfer(table, partial(moved, table))
        self._hosts: dict[int, Host] = {}
        self._talkers: deque[Host] = deque()
        self._pumping = False
        self._dead = 0
        """Sockets that are parked, and not wanted."""

    # What a worker before us left.

    def recover(self) -> None:
        """Go on with the table, which is recovered, and with the sockets that are parked."""
        self._transfer.settle()
        for parked in self._park.look():
            sock = socket.socket(fileno=parked.file.take())
            if not self._is_there(parked.slot, parked.serial):
                self._dead += 1
                shut(sock, socket.SHUT_RDWR)
            elif parked.slot not in self._hosts:
                self.add(parked.slot, sock)
                continue
            else:
                self._dead += 1
            sock.close()
        for slot, record in enumerate(self._table.records):
            if record.state != FREE and slot not in self._hosts:
                # It cannot be lost; should it be, the guest is told.
                self._table.commit(*self.farewell(record))
        if self._dead:
            self._sweep()
        for host in list(self._hosts.values()):
            host.go_on()

    def leave(self) -> None:
        """The worker ends in good order."""
        self.listen(False)
        for host in self._hosts.values():
            self.streams.know(host.slot, -1)
            host.leave()
        self._hosts.clear()
        self._listener.close()
        self._park.close()

    def start_over(self) -> None:
        """The driver knows of no connection any more."""
        for host in list(self._hosts.values()):
            self.close(host)
        self.resets.forget()
        self._sweep()

    # Programs of the host.

    def listen(self, wanted: bool) -> None:
        """Take connections as long as there is room for them."""
        self._wanted = wanted
        possible = wanted and not self._lacks and not self.resets.crowded
        possible = possible and self._free_slot() is not None
        if possible != self._listening:
            self._listening = possible
            if possible:
                self._device.watch(self._listener, self._accept)
            else:
                self._device.unwatch(self._listener)

    def _accept(self) -> None:
        """One connection, which is to say where to."""
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                # It waits there; to look again at once would be for ever.
                self._device.log.warning("vsock: no more connections: %s", error.strerror)
                self._lacks = True
                self._device.call_later(LACK_S, self._look_again)
                self.listen(self._wanted)
            return
        sock.setblocking(False)
        found = self.new_record(sock, VsockType.STREAM)
        if found is None:
            sock.close()
            return
        slot, changes = found
        self._table.commit((self._table.records[slot], changes | {"state": GREETING}))
        self.add(slot, sock)

    def _look_again(self) -> None:
        self._lacks = False
        self.listen(self._wanted)

    def call(self, host: Host, port: int, greeting: int) -> None:
        """The program has said where to: ask the guest."""
        record = host.connection.record
        ours = self._head.port or PORT_FIRST
        while (port, ours) in self.by_ports:
            ours = self._after(ours)
        ports = {"guest_port": port, "host_port": ours}
        self._table.commit(
            (record, {"state": CALLING, "owes": OWES_REQUEST, "in_begin": greeting, **ports}),
            (self._head, {"port": self._after(ours)}),
        )
        self.by_ports[port, ours] = host
        self.talk(host)

    def _after(self, port: int) -> int:
        return port + 1 if port < PORT_LAST else PORT_FIRST

    def new_record(self, sock: socket.socket, kind: int) -> tuple[int, Changes] | None:
        """A slot for a new connection, and the words of its record; None: there is none.

        The socket is parked by now. Until these words are committed it is nobody's there.
        """
        slot = self._free_slot()
        if slot is None:
            return None
        serial = self._head.serial + 1
        self._head.serial = serial
        try:
            self._park.put(slot, serial, sock)
        except OSError as error:
            self._device.log.warning("vsock: no more connections: %s", error.strerror)
            return None
        return slot, blank(serial=serial, kind=kind)

    def _free_slot(self) -> int | None:
        free = (slot for slot, record in enumerate(self._table.records) if record.state == FREE)
        return next(free, None)

    def add(self, slot: int, sock: socket.socket) -> Host:
        """The connection in this slot has this socket."""
        connection = Connection(self._table, slot, self.cid)
        host = Host(self._device, self._table, self._transfer, self, connection, sock)
        self._hosts[slot] = host
        self.streams.know(slot, sock.fileno())
        if connection.record.state in (CALLING, OPEN):
            self.by_ports[connection.ports] = host
        host.look()
        self.talk(host)
        self.listen(self._wanted)
        return host

    def _is_there(self, slot: int, serial: int) -> bool:
        """Whether what was parked under this name is a connection's."""
        if slot >= len(self._table.records):
            return False
        record = self._table.records[slot]
        return record.state != FREE and record.serial == serial

    # The end.

    def close(self, host: Host) -> None:
        """The connection is over."""
        self._table.commit((host.connection.record, {"state": FREE}))
        self.forget(host)

    def reset(self, host: Host) -> None:
        """The connection is over, and the guest is to be told so, if it knows of it."""
        self._table.commit(*self.farewell(host.connection.record))
        self.forget(host)
        self._pump_soon()

    def farewell(self, record: Record) -> list[tuple[Stored, Mapping[str, int]]]:
        """What ends a connection, with an RST if the guest knows of it."""
        changes: list[tuple[Stored, Mapping[str, int]]] = [(record, {"state": FREE})]
        if record.state == OPEN or (record.state == CALLING and not record.owes & OWES_REQUEST):
            changes.append(self.resets.add(record.host_port, record.guest_port, record.kind))
        return changes

    def forget(self, host: Host) -> None:
        """Its record is free: so is its socket."""
        if self._hosts.get(host.slot) is not host:
            return
        del self._hosts[host.slot]
        self.streams.know(host.slot, -1)
        self.hang_up(host)
        host.end()
        self._table.forget(host.slot)
        self._dead += 1
        if self._dead >= DEAD_MOST:
            self._sweep()
        self.listen(self._wanted)

    def hang_up(self, host: Host) -> None:
        """Its ports are free."""
        if self.by_ports.get(host.connection.ports) is host:
            del self.by_ports[host.connection.ports]

    def _sweep(self) -> None:
        try:
            self._park.sweep(self._is_there)
            self._dead = 0
        except OSError as error:
            self._device.log.warning("vsock: parked sockets stay: %s", error.strerror)

    def fed(self) -> Iterator[Host]:
        """Those whose streams have something to do after what was taken from the guest."""
        for slot in self.streams.take_fed():
            if (host := self._hosts.get(slot)) is not None:
                host.connection.heard()
                yield host

    # For the guest.

    def talk(self, host: Host) -> None:
        """There may be something for the guest."""
        if not host.talking and self._hosts.get(host.slot) is host:
            host.talking = True
            self._talkers.append(host)
            self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._device.call_soon(self.pump)

    def pump(self) -> None:
        """Give the guest what there is for it: a packet of each connection in turn."""
        self._pumping = False
        talkers, resets = self._talkers, self.resets
        for _ in range(PACKETS_AT_ONCE):
            if not resets.waiting and not talkers:
                break
            room = self.delivery.room()
            if room is None:
                break
            if resets.waiting:
                packet, change = resets.first()
                self.delivery.give(packet, change)
                continue
            host = talkers.popleft()
            next_packet = None
            if self._hosts.get(host.slot) is host:
                if self.streams.deliver(host.slot, STREAM_AT_ONCE):
                    talkers.append(host)
                    if not host.reading:
                        host.look()
                    continue
                next_packet = host.connection.next_packet(room)
            if next_packet is None:
                host.talking = False
                continue
            talkers.append(host)
            self.delivery.give(next_packet, (host.connection.record, next_packet.changes))
            if not host.reading:
                host.look()  # there may be room again
        else:
            self._pump_soon()
        self.listen(self._wanted)
