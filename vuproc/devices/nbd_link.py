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

from vuproc import texts
from vuproc.device import Timer
from vuproc.devices.nbd_address import Address
from vuproc.devices.nbd_handshake import (
    CONNECT_S,
    Export,
    NbdError,
    leave,
    open_export,
    reason_of,
)
from vuproc.devices.nbd_stream import NbdStream, Piece
from vuproc.fd import HasFileno
from vuproc.parking import Parking
from vuproc.spec.nbd import ExportFlag

AGAIN_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds before the second attempt and those that follow; the last for all further ones."""
PATIENCE_S = 30.0
"""Seconds without a connection after which it is held to be gone for longer."""
SILENT_S = 60.0
"""Seconds for which a server may say nothing on a connection that has commands on their way."""
NEEDED = (
    ExportFlag.SEND_FLUSH
    | ExportFlag.SEND_FUA
    | ExportFlag.SEND_TRIM
    | ExportFlag.SEND_WRITE_ZEROES
    | ExportFlag.CAN_MULTI_CONN
)
"""What an export has to have if it had it at the start."""
READ_ONLY = ExportFlag.READ_ONLY
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

    def call_later(  # noqa: D102
        self, seconds: float, callback: Callable[[], None]
    ) -> Timer: ...


class Commands(Protocol):
    """Whose commands go by it."""

    def link_up(self) -> None:
        """There is a connection, which has nothing on its way."""

    def link_ready(self) -> None:
        """Replies have come, and there may be room for more commands."""

    def link_down(self, unanswered: list[Piece]) -> None:
        """It was lost, and with it the answers to these."""

    def link_gone(self) -> None:
        """There has been none for PATIENCE_S; said again after each further attempt. Or there was
        one on which the server has said nothing for SILENT_S.
        """


class NbdLink:
    """The connection of one queue; in the worker's thread, but for the making of it.

    `stream` is there while there is a connection. `export` is what the master was told of it.
    """

    # `_trouble_since`: since when commands have had no answer for want of a server that gives any.
    # A connection alone does not end it: there are servers that hang up at a command each time.

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
        self._trouble_since: float | None = None
        self._connecting = False
        self._closed = False
        self._silence: Timer | None = None

    @property
    def gone(self) -> bool:
        """Whether it has been away for PATIENCE_S."""
        since = self._trouble_since
        return self.stream is None and since is not None and time.monotonic() - since > PATIENCE_S

    def open(self) -> None:
        """Have a connection, if there is none."""
        if self.stream is None and not self._connecting and not self._closed:
            self._trouble()
            self._connect()

    def turn(self) -> None:
        """Send and receive what can be. To be called after a `send`."""
        if self.stream is None:
            return
        try:
            self.stream.turn()
        except (NbdError, OSError) as error:
            answered = self.stream.answered
            unanswered = self.drop()
            if answered:
                self._all_is_well()
            if self._attempts == 0:
                self.say(reason_of(error))
            self._attempts += 1
            self.open()
            if self.commands is not None:
                self.commands.link_down(unanswered)
                if self.gone:
                    self.commands.link_gone()
            return
        if self.stream.answered:
            self._all_is_well()
        if self._silence is None and self.stream.outstanding:
            self._silence = self._loop.call_later(SILENT_S, self._look)

    def _look(self) -> None:
        """It may have been silent for too long: then nobody waits for it any more."""
        self._silence = None
        if self.stream is None or not self.stream.outstanding:
            return
        left_s = self.stream.heard + SILENT_S - time.monotonic()
        if left_s > 0:
            self._silence = self._loop.call_later(left_s, self._look)
            return
        self.say(f"connected, and no answer for {texts.seconds(SILENT_S)}")
        unanswered = self.drop()
        self._attempts += 1
        # As if it had been away for all that time; another connection may do better.
        self._trouble_since = time.monotonic() - PATIENCE_S - SILENT_S
        self.open()
        if self.commands is not None:
            self.commands.link_down(unanswered)
            self.commands.link_gone()

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
        self._end_silence()
        self._loop.unwatch(stream)
        # The copy that is parked would keep it open: the server is to see its end now.
        with suppress(OSError):
            stream.connected.shutdown(socket.SHUT_WR)
        stream.close()
        return list(stream.outstanding.values())

    def close(self) -> None:
        """The worker ends in good order: hang up."""
        self._closed = True
        if self.stream is not None and self.stream.outstanding:
            self.drop()  # whoever follows waits for the end of what is on its way
        self._end_silence()
        stream, self.stream = self.stream, None
        if stream is None:
            return
        self._loop.unwatch(stream)
        leave(stream.connected)
        stream.close()
        self._parking.clear()

    def say(self, what: str) -> None:
        """A line in the log."""
        self._loop.log.warning("queue %d: %s: %s", self._queue, self._address, what)

    def _end_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _trouble(self) -> None:
        if self._trouble_since is None:
            self._trouble_since = time.monotonic()

    def _all_is_well(self) -> None:
        self._attempts, self._trouble_since = 0, None

    def _connect(self) -> None:
        self._connecting = True
        after_s = AGAIN_S[min(self._attempts, len(AGAIN_S)) - 1] if self._attempts else 0.0
        threading.Thread(target=self._connect_in_thread, args=[after_s], daemon=True).start()

    def _connect_in_thread(self, after_s: float) -> None:
        time.sleep(after_s)
        try:
            self._end_the_last()
            connected, export = open_export(self._address, CONNECT_S)
        except Exception as error:  # whatever it is, there is to be another attempt
            reason = reason_of(error)
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
            return
        problem = self._problem(export)
        if problem is not None:
            leave(connected)
            self._failed(problem)
            return
        try:
            self._parking.park(connected)
            stream = NbdStream(connected)
        except Exception as error:  # no descriptor for one of the copies, above all
            connected.close()
            self._parking.clear()
            self._failed(reason_of(error))
            return
        self.stream = stream
        self._loop.watch(stream, self._ready)
        if self._attempts:
            self._loop.log.info("queue %d: %s: connected again", self._queue, self._address)
        if self.commands is not None:
            self.commands.link_up()
        if self.stream is not None and not self.stream.outstanding:
            self._all_is_well()

    def _problem(self, export: Export) -> str | None:
        """Why this export cannot stand for the one of the start."""
        ours = self._export
        if export.size < ours.size:
            return f"the export has {export.size} bytes, and had {ours.size} at the start"
        if (ours.flags & ~export.flags) & NEEDED or (export.flags & ~ours.flags) & READ_ONLY:
            return "the export can do less than at the start"
        if export.least > ours.least or export.most < ours.most:
            return "the export takes other sizes than at the start"
        return None

    def _failed(self, reason: str) -> None:
        self._connecting = False
        if self._closed:
            return
        if self._attempts == 0:
            self.say(reason)
        self._attempts += 1
        self._trouble()
        self._connect()
        if self.gone and self.commands is not None:
            self.commands.link_gone()
