"""The poll set of a worker: which callback belongs to which descriptor."""

from __future__ import annotations

import select
from collections.abc import Callable

Callback = Callable[[int], None]

SELECT_FDS = 1024
"""Descriptors from this number on are too large for select(2), FD_SETSIZE."""


class Watcher:
    """epoll with a callback a descriptor, which gets the event mask (EPOLLIN, EPOLLHUP, ...)."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}

    def add(self, fd: int, callback: Callback, events: int = select.EPOLLIN) -> None:
        """Call `callback` whenever `fd` has one of `events`. Raises ValueError if it is watched
        already.

        One that was closed while it was watched is not watched any more, whoever has its number.
        """
        try:
            self._epoll.register(fd, events)
        except FileExistsError:
            raise ValueError(f"fd {fd} is watched already") from None
        self._callbacks[fd] = callback

    def remove(self, fd: int, callback: Callback | None = None) -> None:
        """Stop watching `fd`; a no-op if it is not watched, or not with `callback` if that is
        given.
        """
        if callback is not None and self._callbacks.get(fd) is not callback:
            return
        if self._callbacks.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass  # closed by its owner already, which took it out of the set

    def fileno(self) -> int:
        """The poll set's own descriptor, which is readable while one of the others has an event."""
        return self._epoll.fileno()

    def poll(self, timeout: float | None) -> int:
        """Wait up to `timeout` seconds (None: until something happens), run the callbacks, return
        their number.
        """
        if timeout and self._epoll.fileno() < SELECT_FDS:
            # epoll_wait(2) counts in milliseconds, and a timer is to be exact.
            select.select([self._epoll.fileno()], [], [], timeout)
            timeout = 0.0
        events = self._epoll.poll(timeout)
        ran = 0
        for fd, mask in events:
            callback = self._callbacks.get(fd)
            if callback is not None:  # an earlier callback of this turn may have removed it
                callback(mask)
                ran += 1
        return ran

    def close(self) -> None:
        """Close the poll set, not the descriptors."""
        self._epoll.close()
        self._callbacks.clear()


def is_ready(fd: int, events: int) -> bool:
    """Whether a watcher would call back for this descriptor at once."""
    poller = select.poll()
    poller.register(fd, events)
    return bool(poller.poll(0))
