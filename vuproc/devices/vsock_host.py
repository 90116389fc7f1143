"""The host's side of a connection: a Unix socket, read and written as far as there is room."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import select
import socket
import termios
from contextlib import suppress
from typing import Protocol

from vuproc.device import Device
from vuproc.devices.vsock_connection import (
    CALLING,
    ENDING,
    GREETING,
    LENGTH,
    OPEN,
    Connection,
)
from vuproc.devices.vsock_table import Table
from vuproc.devices.vsock_transfer import Transfer
from vuproc.spec.vsock import PORT_MAX, Shutdown

GREETING_MOST = 32
"""Bytes in which a program says to which port it wants: CONNECT, a number and the line's end."""
LACK_S = 0.1
"""Until something is tried again for which there was no descriptor."""
DISCARDED = 1 << 16
"""Bytes at a time of what the guest does not take any more."""
DISCARDS_MOST = 1024
RESERVED = 4
"""Bytes that the kernel counts for one of the guest's that waits for its program: it has its own to
add, and a turn's worth more keeps the program busy meanwhile.
"""
READS_AT_ONCE = 4
"""Reads of one socket before others get their turn."""


class Owner(Protocol):
    """Who has the connections."""

    def talk(self, host: Host) -> None:
        """There may be something for the guest."""

    def call(self, host: Host, port: int, greeting: int) -> None:
        """The program wants to connect to this port of the guest's; so many bytes said so."""

    def close(self, host: Host) -> None:
        """The connection is over."""

    def reset(self, host: Host) -> None:
        """The connection is over, and the guest is to be told so."""


class Host:
    """The socket of a connection; `transfer` moves its bytes."""

    def __init__(
        self,
        device: Device,
        table: Table,
        transfer: Transfer,
        owner: Owner,
        connection: Connection,
        sock: socket.socket,
    ) -> None:
        self.connection = connection
        self.slot = connection.slot
        self.talking = False
        """It is among those that may have something for the guest."""
        self.over = False
        """Its record is somebody else's by now."""
        self._device = device
        self._table = table
        self._transfer = transfer
        self._owner = owner
        self._socket = sock
        if connection.stream:
            _make_room(sock, connection.buf_alloc)
        self.reading = False
        """It is watched for bytes of the program's."""
        self._blocked: socket.socket | None = None
        """A second descriptor, to wait until the program has read something."""

    def _commit(self, changes: dict[str, int]) -> None:
        self._table.commit((self.connection.record, changes))

    def go_on(self) -> None:
        """Do what a worker before us may have left undone."""
        if self.connection.record.guest_shut & Shutdown.RECEIVE:
            self.deafen()
        else:
            self.look()
        if self.connection.record.state == GREETING:
            self._greet()
        else:
            self.send()

    # From the program.

    def look(self) -> None:
        """Read from now on, or not any more, as there is room."""
        if self.over:
            return
        record = self.connection.record
        wanted = (
            record.state in (GREETING, CALLING, OPEN)
            and not record.ended
            and not record.guest_shut & Shutdown.RECEIVE
            and self._has_room()
        )
        if wanted != self.reading:
            self.reading = wanted
            if wanted:
                self._device.watch(self._socket, self._read)
            else:
                self._device.unwatch(self._socket)

    def _has_room(self) -> bool:
        """Whether something can be taken: a message as a whole, or the area is to get empty."""
        room = self.connection.room
        if self.connection.stream or room == self.connection.from_host.size:
            return room > 0
        return room > LENGTH.size and self._next_message() <= room

    def _next_message(self) -> int:
        """Bytes that the next message takes with its length before it; 0: none is there."""
        try:
            peeked = self._socket.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
        except OSError:
            return 0
        return peeked + LENGTH.size

    def _read(self) -> None:
        """Take what there is, as far as there is room."""
        for _ in range(READS_AT_ONCE):
            if not self._read_once():
                break
        if self.over:
            return
        if self.connection.record.state == GREETING:
            self._greet()
        else:
            self._owner.talk(self)
        self.look()

    def _read_once(self) -> bool:
        """Take some bytes, or a message; whether there may be more."""
        connection, record = self.connection, self.connection.record
        area, position, room = connection.from_host, record.in_end, connection.room
        if not connection.stream:
            needed = self._next_message()
            if needed == LENGTH.size:
                return self._skip_empty()
            if needed > area.size:
                self._device.log.warning("vsock: a message of %d bytes is too long", needed)
                self._owner.reset(self)
                return False
            if not needed or needed > room:
                return False
            position, room = position + LENGTH.size, needed - LENGTH.size
        if room <= 0:
            return False
        try:
            count = self._transfer.receive(
                self._socket.fileno(), self.slot, record.in_end, area.places(position, room)
            )
        except BlockingIOError:
            return False
        except ConnectionResetError:
            count = 0  # the program has closed it, with something unread
        if not count:
            self._end_of_input()
        return count > 0

    def _skip_empty(self) -> bool:
        """A message without a byte is first, or the end is there: whether there may be more."""
        unread = bytearray(4)
        fcntl.ioctl(self._socket, termios.FIONREAD, unread)
        if self._events() and not any(unread):
            self._end_of_input()
            return False
        self._socket.recv(1)  # there is no such message for the guest
        return True

    def _events(self) -> int:
        """POLLRDHUP once the program sends no more, POLLHUP once nobody does."""
        poller = select.poll()
        poller.register(self._socket, select.POLLRDHUP)
        return sum(events for _, events in poller.poll(0))

    def _end_of_input(self) -> None:
        """The program sends no more. If nobody does, and the guest may still, it has closed it."""
        changes, record = {"ended": 1}, self.connection.record
        both = self._events() & select.POLLHUP and not record.guest_shut & Shutdown.SEND
        if both and record.state == OPEN:
            changes |= self.connection.deafened()
        self._commit(changes)

    def _greet(self) -> None:
        """The first line says to which port it wants."""
        record = self.connection.record
        said = self.connection.from_host.get(0, min(record.in_end, GREETING_MOST))
        line, newline, _ = said.partition(b"\n")
        verb, _, number = line.strip(b"\r").partition(b" ")
        number = number.strip(b" ")
        if newline and verb == b"CONNECT" and number.isdigit() and int(number) <= PORT_MAX:
            self._owner.call(self, int(number), len(line) + 1)
        elif newline or len(said) == GREETING_MOST or record.ended:
            self._owner.close(self)

    # To the program.

    def send(self) -> None:
        """Pass on what is there from the guest, and the end of it."""
        if self.over:
            return
        connection, record = self.connection, self.connection.record
        while connection.unsent:
            try:
                if connection.stream:
                    self._send_bytes()
                else:
                    self._send_message()
            except BlockingIOError:
                self._wait()
                return
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    self._device.log.warning("vsock: a message is too long for its Unix socket")
                    self._owner.reset(self)
                    return
                self._commit(connection.deafened())
        self._go_on()
        if record.state == ENDING:
            self._owner.close(self)
            return
        if record.guest_shut & Shutdown.SEND:
            shut(self._socket, socket.SHUT_WR)
        self._owner.talk(self)

    def _send_bytes(self) -> None:
        record = self.connection.record
        begin, end = record.out_begin, record.out_end
        places = self.connection.from_guest.places(begin, end - begin)
        self._transfer.send(self._socket.fileno(), self.slot, begin, end, places)

    def _send_message(self) -> None:
        """Whole, or not at all. One without a byte would look like the end."""
        content, end, ends_record = self.connection.message()
        record = self.connection.record
        if not content:
            self._commit({"out_begin": end, "messages": record.messages - 1})
            return
        held = (ctypes.c_char * len(content)).from_buffer_copy(content)
        self._transfer.send(
            self._socket.fileno(),
            self.slot,
            record.out_begin,
            end,
            [(ctypes.addressof(held), len(content))],
            socket.MSG_EOR if ends_record else 0,
        )

    def _wait(self) -> None:
        """Until the program has read something."""
        if self._blocked is not None:
            return
        try:
            self._blocked = self._socket.dup()
        except OSError:
            self._device.call_later(LACK_S, self.send)  # there is no descriptor to be had
        else:
            self._device.watch(self._blocked, self.send, write=True)

    def _go_on(self) -> None:
        if self._blocked is not None:
            self._device.unwatch(self._blocked)
            self._blocked.close()
            self._blocked = None

    # The end.

    def deafen(self) -> None:
        """The guest takes nothing any more: whoever writes gets EPIPE.

        Who waits for room meanwhile, by poll(2), is woken by nothing else than room.
        """
        shut(self._socket, socket.SHUT_RD)
        with suppress(OSError):
            for _ in range(DISCARDS_MOST):
                if not self._socket.recv(DISCARDED, socket.MSG_DONTWAIT):
                    break
        self.look()

    def end(self) -> None:
        """Close it. A copy is parked still: so the program is told by a shutdown."""
        self.over = True
        shut(self._socket, socket.SHUT_RDWR)
        self.leave()

    def leave(self) -> None:
        """The worker ends, and the connection goes on."""
        if self.reading:
            self._device.unwatch(self._socket)
            self.reading = False
        self._go_on()
        self._socket.close()


def shut(sock: socket.socket, how: int) -> None:
    """Shut a socket down, if its program is there still."""
    with suppress(OSError):
        sock.shutdown(how)


def _make_room(sock: socket.socket, size: int) -> None:
    """Have the kernel take so many bytes at once, as far as it may (net.core.wmem_max). What it
    does not take is copied once more, and sent from Python.
    """
    wanted = RESERVED * size
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < wanted:
        # It reserves twice what it is asked for.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wanted // 2)
