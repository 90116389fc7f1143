"""A started ring's kick, call and error descriptors, as its worker has them."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

from vuproc.fd import Fd
from vuproc.vhost_user.effects import RingSetup
from vuproc.workers.poller import Watcher, is_ready

KICK_BYTES = 8
"""What one kick is: the eventfd's counter; pipes and sockets carry the same eight bytes a kick."""
HUNG_UP = "the kick descriptor was closed by its other end"


class KickGone(Exception):
    """The kick descriptor has come to its end, or cannot be read; the text says which."""


class RingFds:
    """Owns the three; each may be missing: a ring without a kick is polled."""

    def __init__(self) -> None:
        self.kick: Fd | None = None
        self.call: Fd | None = None
        self.err: Fd | None = None

    def take(self, setup: RingSetup) -> None:
        """Those of a ring that starts."""
        self.kick, self.call, self.err = setup.kick, setup.call, setup.err

    def close(self) -> None:
        """The ring has stopped."""
        for fd in (self.kick, self.call, self.err):
            if fd is not None:
                fd.close()
        self.kick = self.call = self.err = None

    @property
    def call_number(self) -> int:
        """For `Ring.set_call`; -1: there is none."""
        return -1 if self.call is None else self.call.fileno()

    def signal_err(self) -> None:
        """Tell the front-end that the ring is broken."""
        if self.err is not None:
            self.err.notify()

    def watch_kick(
        self, watcher: Watcher, on_kick: Callable[[], None], on_end: Callable[[str], None]
    ) -> None:
        """Have the loop call back for kicks, and for the other end's close."""
        if self.kick is None:
            return

        def ready(mask: int) -> None:
            if mask & select.EPOLLIN:
                on_kick()
            elif mask & (select.EPOLLHUP | select.EPOLLERR):
                on_end(HUNG_UP)

        watcher.add(self.kick.fileno(), ready)

    def unwatch_kick(self, watcher: Watcher) -> None:
        """The opposite."""
        if self.kick is not None:
            watcher.remove(self.kick.fileno())

    def kick_waits(self) -> bool:
        """Whether a kick has come that was not read yet."""
        return self.kick is not None and is_ready(self.kick.fileno(), select.POLLIN)

    def read_kick(self) -> int:
        """How many kicks have come; 0: somebody else was quicker. Raises KickGone."""
        if self.kick is None:
            return 0
        try:
            data = os.read(self.kick.fileno(), KICK_BYTES)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise KickGone(f"cannot read the kick descriptor: {error.strerror}") from error
        if not data:
            raise KickGone(HUNG_UP)
        # A pipe carries one each, an eventfd the number of them.
        return int.from_bytes(data, sys.byteorder) or 1
