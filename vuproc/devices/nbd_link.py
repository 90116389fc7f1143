"""A connection to an NBD server that is made anew when it is lost, and the end of the one before.

A worker may have died with commands on their way. Its socket is parked, so that whoever follows
sees to its end first: the server has all that it will get by it, does it, and hangs up. What is
sent on the next connection comes after that.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from vuproc.devices.nbd_address import Address
from vuproc.devices.nbd_handshake import Export, NbdError, leave, open_export
from vuproc.devices.nbd_stream import NbdStream, Piece
from vuproc.fd import HasFileno
from vuproc.parking import Parking

CONNECT_S = 5.0
"""Seconds that each step of a connection may take."""
AGAIN_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds before the second attempt and those that follow; the last for all further ones."""
PATIENCE_S = 30.0
"""Seconds without a connection after which it is held to be gone for longer."""
END_S = 2.0
"""Seconds that the end of the connection before is waited for."""


class Loop(Protocol):
    """What it needs of its device (`vuproc.Device`)."""

    @property
    def log(self) -> logging.Logger: ...  # noqa: D102

    def watch(  # noqa: D102
        self, fd: int | HasFileno, callback: Callable[[], None], *, write: bool = False
    ) -> None: ...

    def unwatch(self, fd: int | HasFileno) -> None: ...  # noqa: D102

    def call_soon(self, callback: Callable[[], None]) -> None: ...  # noqa: D102


class Commands(Protocol):
    """Whose commands go by it."""

    def link_up(self) -> None:
        """There is a connection, which has nothing on its way."""

    def link_ready(self) -> None:
        """Replies have come, and there may be room for more commands."""

    def link_down(self, unanswered: list[Piece]) -> None:
        """It was lost, and with it the answers to these."""

    def link_gone(self) -> None:
        """There has been none for PATIENCE_S; said again after each further attempt."""


class NbdLink:
    """The connection of one queue; in the worker's thread, but for the making of it.

    `stream` is there while there is a connection. `export` is what the master was told of it.
    """

    def __init__(
        self, loop: Loop, queue: int, address: Address, export: Export, parking: Parking
    ) -> None:
        self.stream: NbdStream | None = None
        self.commands: Commands | None = None
        self._loop = loop
        self._queue = queue
        self._address = address
        self._export = export
        self._parking = parking
        self._attempts = 0
        self._lost_at = 0.0
        self._connecting = False
        self._closed = False

    @property
    def gone(self) -> bool:
        """Whether it has been away for PATIENCE_S."""
        return self.stream is None and time.monotonic() - self._lost_at > PATIENCE_S

    def open(self) -> None:
        """Have a connection, if there is none."""
        if self.stream is None and not self._connecting:
            self._lost_at = time.monotonic()
            self._connect()

    def turn(self) -> None:
        """Send and receive what can be. To be called after a `send`."""
        if self.stream is None:
            return
        try:
            self.stream.turn()
        except (NbdError, OSError) as error:
            unanswered = self.drop()
            self._say(_reason(error))
            self._attempts = 1
            self.open()
            if self.commands is not None:
                self.commands.link_down(unanswered)

    def _ready(self) -> None:
        self.turn()
        if self.commands is not None:
            self.commands.link_ready()

    def drop(self) -> list[Piece]:
        """Give the connection up as it is; the commands that have no answer. The next one is made
        when the server is done with them.
        """
        stream, self.stream = self.stream, None
        if stream is None:
            return []
        self._loop.unwatch(stream)
        stream.close()
        return list(stream.outstanding.values())

    def close(self) -> None:
        """The worker ends in good order: hang up."""
        self._closed = True
        stream, self.stream = self.stream, None
        if stream is not None:
            self._loop.unwatch(stream)
            leave(stream.connected)
            stream.close()
            self._parking.clear()

    def _connect(self) -> None:
        self._connecting = True
        after_s = AGAIN_S[min(self._attempts, len(AGAIN_S)) - 1] if self._attempts else 0.0
        threading.Thread(target=self._connect_in_thread, args=[after_s], daemon=True).start()

    def _connect_in_thread(self, after_s: float) -> None:
        time.sleep(after_s)
        try:
            self._end_the_last()
            connected, export = open_export(self._address, CONNECT_S)
        except (NbdError, OSError) as error:
            reason = _reason(error)
            self._loop.call_soon(lambda: self._failed(reason))
        else:
            self._loop.call_soon(lambda: self._connected(connected, export))

    def _end_the_last(self) -> None:
        left = self._parking.parked()
        if left is None:
            return
        with left, socket.socket(fileno=os.dup(left.fileno())) as last, suppress(OSError):
            deadline = time.monotonic() + END_S
            last.shutdown(socket.SHUT_WR)
            last.setblocking(True)
            while (left_s := deadline - time.monotonic()) > 0:
                last.settimeout(left_s)
                if not last.recv(1 << 16):
                    break
        self._parking.clear()

    def _connected(self, connected: socket.socket, export: Export) -> None:
        self._connecting = False
        if self._closed:
            leave(connected)
        elif export.size < self._export.size or self._export.flags & ~export.flags:
            leave(connected)
            self._failed("the export is smaller, or can do less, than at the start")
        else:
            self._parking.park(connected)
            if self._attempts:
                self._loop.log.info("queue %d: %s: connected again", self._queue, self._address)
            self._attempts = 0
            self.stream = NbdStream(connected)
            self._loop.watch(self.stream, self._ready)
            if self.commands is not None:
                self.commands.link_up()

    def _failed(self, reason: str) -> None:
        self._connecting = False
        if self._closed:
            return
        if self._attempts == 0:
            self._say(reason)
        self._attempts += 1
        self._connect()
        if self.gone and self.commands is not None:
            self.commands.link_gone()

    def _say(self, reason: str) -> None:
        self._loop.log.warning("queue %d: %s: %s", self._queue, self._address, reason)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
