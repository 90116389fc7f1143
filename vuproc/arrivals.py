"""Front-ends that come while one is served, or none: the next one, and those that have to wait."""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Callable

from vuproc.listener import Source
from vuproc.poll_set import PollSet

log = logging.getLogger("vuproc.master")


class Arrivals:
    """Where front-ends come from; `on_arrival` is called when there is one to serve."""

    def __init__(self, source: Source, polls: PollSet, on_arrival: Callable[[], None]) -> None:
        self.source = source
        self.other_waits = False
        """Whether a front-end waits for the one that is connected to leave."""
        self._polls = polls
        self._on_arrival = on_arrival
        self._polled: Callable[[], None] | None = None
        self._not_before = 0.0

    @property
    def polled(self) -> bool:
        """Whether the next front-end is announced by a descriptor; else `next` finds out."""
        return self._polled is not None

    def arm(self, *, serving: bool) -> None:
        """Poll the listening socket for a front-end to serve; while one is served, for the first
        other one, which is noted. Those that wait cannot spin us.
        """
        wanted: Callable[[], None] | None = self._on_arrival
        if serving:
            wanted = None if self.other_waits else self._note_other
        number = self.source.fileno()
        if number is None or wanted == self._polled:
            return
        if self._polled is not None:
            self._polls.selector.unregister(number)
        if wanted is not None:
            self._polls.add(number, wanted)
        self._polled = wanted

    def due(self) -> float:
        """Seconds until `next` is worth a call again."""
        return self._not_before - time.monotonic()

    def next(self) -> socket.socket | None:
        """The next front-end, if there is one by now."""
        if self._polled is None and self.due() > 0:
            return None
        sock = self.source.accept()
        if sock is None:
            self.pause()
        return sock

    def pause(self) -> None:
        """A front-end has gone, or none was there: the next attempt comes after a while."""
        self.other_waits = False
        self._not_before = time.monotonic() + self.source.delay()

    def somebody_waits(self) -> bool:
        """Whether a front-end is there beside the one that is served."""
        number = self.source.fileno()
        if number is None:
            return False
        with selectors.PollSelector() as selector:
            selector.register(number, selectors.EVENT_READ)
            return bool(selector.select(0))

    def _note_other(self) -> None:
        self.other_waits = True
        log.warning(
            "another front-end waits: one is served at a time, and this one goes first. For a "
            "hand-over between two VMMs (QEMU's cpr-transfer) start a second vuproc"
        )
