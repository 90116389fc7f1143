"""What one queue has under way at an image of a Ceph cluster, as the queue of a disk of commands
knows a connection.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vuproc import texts
from vuproc.device import Timer
from vuproc.devices.nbd_link import PATIENCE_S, SILENT_S
from vuproc.devices.rbd_binding import reason_of
from vuproc.devices.rbd_client import RbdClient
from vuproc.spec.nbd import Command, CommandFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from vuproc.devices.nbd_link import Commands, Loop
    from vuproc.devices.nbd_stream import Piece

THICK = 1
"""rbd.RBD_WRITE_ZEROES_FLAG_THICK_PROVISION."""


class RbdStream:
    """Commands that the library carries out, by threads of its own. `outstanding`: those that are
    not done. `heard`: when one was last done, or the first sent (time.monotonic). `shut_out`:
    whether the cluster takes nothing more of this client.
    """

    def __init__(self, image: Any, loop: Loop, came: Callable[[RbdStream], None]) -> None:
        self.outstanding: dict[int, Piece] = {}
        self.heard = time.monotonic()
        self.shut_out = False
        self._image = image
        self._loop = loop
        self._tell = came
        self._cookie = 0
        self._lock = threading.Lock()
        self._came: deque[tuple[int, int, bytes | None]] = deque()
        self._told = False

    def send(self, piece: Piece) -> None:
        """Have it done."""
        if not self.outstanding:
            self.heard = time.monotonic()
        self._cookie += 1
        cookie = self._cookie
        self.outstanding[cookie] = piece

        def done(completion: Any, data: bytes | None = None) -> None:
            self._done(cookie, int(completion.get_return_value()), data)

        try:
            self._begin(piece, done)
        except Exception as error:
            self._loop.log.warning("a call of rbd failed: %s", reason_of(error))
            self._done(cookie, -abs(getattr(error, "errno", 0) or errno.EIO), None)

    def _begin(self, piece: Piece, done: Callable[..., None]) -> None:
        image = self._image
        if piece.kind == Command.READ:
            image.aio_read(piece.offset, piece.length, done)
        elif piece.kind == Command.WRITE:
            image.aio_write(piece.data, piece.offset, done)
        elif piece.kind == Command.FLUSH:
            image.aio_flush(done)
        elif piece.kind == Command.TRIM:
            image.aio_discard(piece.offset, piece.length, done)
        else:
            thick = THICK if piece.flags & CommandFlag.NO_HOLE else 0
            image.aio_write_zeroes(piece.offset, piece.length, done, thick)

    def _done(self, cookie: int, result: int, data: bytes | None) -> None:
        """In any thread. The worker is told once of all that have come meanwhile."""
        with self._lock:
            self._came.append((cookie, result, data))
            if self._told:
                return
            self._told = True
        with suppress(Exception):  # the worker is ending
            self._loop.call_soon(self._collect)

    def _collect(self) -> None:
        with self._lock:
            self._told = False
            came = list(self._came)
            self._came.clear()
        self.heard = time.monotonic()
        for cookie, result, data in came:
            piece = self.outstanding.pop(cookie)
            if data and piece.into is not None:
                piece.into(0, memoryview(data))
            if piece.kind == Command.READ and 0 <= result < piece.length:
                result = -errno.EIO
            piece.done(-result if result < 0 else 0)
            if result == -errno.ESHUTDOWN:
                self.shut_out = True
        self._tell(self)


class RbdLink:
    """As `NbdLink`. The image stays open while there is a worker: what has no answer is never sent
    a second time. Where it is given up, nothing more is sent before it is done after all, so that
    no older write comes after a newer one.
    """

    def __init__(self, loop: Loop, queue: int, client: RbdClient) -> None:
        self.stream: RbdStream | None = None
        self.commands: Commands | None = None
        self._loop = loop
        self._queue = queue
        self._client = client
        self._given_up: RbdStream | None = None
        self._trouble_since: float | None = None
        self._silence: Timer | None = None
        self._patience: Timer | None = None
        client.add(self)

    @property
    def gone(self) -> bool:
        """Whether nothing was done for longer than a guest is to wait."""
        since = self._trouble_since
        return self.stream is None and since is not None and time.monotonic() - since > PATIENCE_S

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._given_up is None and not (self.stream and self.stream.outstanding)

    def open(self) -> None:
        """Have the image, if it is not open."""
        if self.stream is None:
            self._trouble()
            if self._client.image is None:
                self._client.open()
            elif self._given_up is None:
                self.opened(self._client.image)

    def turn(self) -> None:
        """To be called after a `send`."""
        if self._silence is None and self.stream is not None and self.stream.outstanding:
            self._silence = self._loop.call_later(SILENT_S, self._look)

    def drop(self) -> list[Piece]:
        """Nobody waits for what is under way any more."""
        stream, self.stream = self.stream, None
        if stream is not None and stream.outstanding:
            self._given_up = stream
            self._trouble()
        return []

    def close(self) -> None:
        """The worker ends."""
        for timer in (self._silence, self._patience):
            if timer is not None:
                timer.cancel()
        self._silence = self._patience = None
        if not self.idle:
            self._loop.log.info(
                "queue %d: %s: the end does not wait", self._queue, self._client.name
            )

    def say(self, what: str) -> None:
        """A line in the log."""
        self._loop.log.warning("queue %d: %s: %s", self._queue, self._client.name, what)

    # What the client and the stream say.

    def opened(self, image: Any) -> None:
        """There is the image."""
        if self._given_up is not None:
            return
        self.stream = RbdStream(image, self._loop, self._ready)
        self._trouble_since = None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self.commands is not None:
            self.commands.link_up()

    def _trouble(self) -> None:
        """Nothing can be sent: no guest waits for ever, whatever the library is waiting for."""
        if self._trouble_since is None:
            self._trouble_since = time.monotonic()
        if self._patience is None:
            self._patience = self._loop.call_later(PATIENCE_S, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        if self.stream is None:
            if self.commands is not None:
                self.commands.link_gone()
            self._trouble()

    def _ready(self, stream: RbdStream) -> None:
        if stream.shut_out:
            self._client.fenced()
        if stream is self._given_up:
            if not stream.outstanding:
                self._given_up = None
                self.opened(self._client.image)
        elif self.commands is not None:
            self.commands.link_ready()

    def _look(self) -> None:
        """Whether the cluster was silent for too long."""
        self._silence = None
        if self.stream is None or not self.stream.outstanding:
            return
        left_s = self.stream.heard + SILENT_S - time.monotonic()
        if left_s > 0:
            self._silence = self._loop.call_later(left_s, self._look)
            return
        self.say(f"no answer for {texts.seconds(SILENT_S)}")
        self.drop()
        self._trouble_since = time.monotonic() - PATIENCE_S - SILENT_S
        if self.commands is not None:
            self.commands.link_gone()
