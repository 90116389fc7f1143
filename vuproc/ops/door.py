"""A listening socket in a selector: it accepts as long as there is room for another client."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from typing import Protocol

AsCallback = Callable[[Callable[[], None]], Callable[[], None]]
"""Makes what a selector gets as data of a function."""


class Listening(Protocol):
    """A listening socket that does not block, and is owned."""

    def fileno(self) -> int:
        """The descriptor."""

    def accept(self) -> socket.socket | None:
        """The next connection, None if there is none to be had."""

    def close(self) -> None:
        """Close it."""


class Door:
    """Gives each client, whose socket does not block, to `admit`. Owns `listener`, which is open.

    `has_room` says whether there is room for another.
    """

    def __init__(
        self,
        listener: Listening,
        selector: selectors.BaseSelector,
        as_callback: AsCallback,
        has_room: Callable[[], bool],
        admit: Callable[[socket.socket], None],
    ) -> None:
        self._listener = listener
        self._selector = selector
        self._action = as_callback(self._accept)
        self._has_room = has_room
        self._admit = admit
        self._accepting = False
        self.look()

    def look(self) -> None:
        """The number of clients has changed."""
        room = self._has_room()
        if room and not self._accepting:
            self._selector.register(self._listener.fileno(), selectors.EVENT_READ, self._action)
        elif not room and self._accepting:
            self._selector.unregister(self._listener.fileno())
        self._accepting = room

    def close(self) -> None:
        """Accept nobody any more."""
        if self._accepting:
            self._selector.unregister(self._listener.fileno())
            self._accepting = False
        self._listener.close()

    def _accept(self) -> None:
        client = self._listener.accept()
        if client is None:
            return
        client.setblocking(False)
        self._admit(client)
        self.look()
