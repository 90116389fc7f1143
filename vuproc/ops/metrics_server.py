"""Scrapes, served inside the master's loop: a bit at a time, so that no message waits for them.

A page is made in slices of `SLICE_S`, one a turn of the loop, of the memory that workers and master
count in: no worker hears of it. Clients that ask at the same time share a page, and another one
begins `PAUSE_S` after the last at the earliest, however many ask. Nobody is waited for.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

from vuproc.chores import Meanwhile
from vuproc.ops.door import AsCallback, Door, Listening
from vuproc.ops.http_request import HEAD_BYTES, Wants, answer, parse
from vuproc.ops.metric_table import CONTENT_TYPE

CLIENTS = 8
"""Clients at a time; further ones wait in the backlog."""
CLIENT_DEADLINE_S = 5.0
"""Seconds a client has to send its request, and to take the answer."""
CROWDED_DEADLINE_S = 1.0
"""The same while others wait in the backlog, perhaps."""
SLICE_S = 0.0005
"""Seconds of a turn of the loop that a page may take, or one of its pieces if that takes longer."""
PAUSE_S = 0.02
"""Seconds from the end of one page to the begin of the next."""


class _Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.since = time.monotonic()
        self.head = bytearray()
        self.wants: Wants | None = None
        self.left = memoryview(b"")


class _Page:
    """One page on its way, and who waits for it."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._made: list[str] = []
        self.begun = False
        self.content: bytes | None = None
        self.clients: list[_Client] = []

    def go_on(self) -> bool:
        """Make a slice of it; whether it is complete."""
        self.begun = True
        end = time.monotonic() + SLICE_S
        for piece in self._pieces:
            self._made.append(piece)
            if time.monotonic() >= end:
                return False
        self.content = "".join(self._made).encode()
        return True


class MetricsServer:
    """A chore of the master's loop. Owns `listener`; `pieces` begins another page."""

    def __init__(
        self,
        listener: Listening,
        selector: selectors.BaseSelector,
        pieces: Callable[[], Iterator[str]],
        as_callback: AsCallback = Meanwhile,
    ) -> None:
        self._selector = selector
        self._pieces = pieces
        self._as_callback = as_callback
        self._clients: dict[socket.socket, _Client] = {}
        self._making: _Page | None = None
        self._next: _Page | None = None
        self._next_at = 0.0
        self._door = Door(
            listener, selector, as_callback, lambda: len(self._clients) < CLIENTS, self._admit
        )

    # The chore.

    def due(self) -> float | None:
        """Seconds until a client's time is up or a page is to begin; None if nothing is due."""
        now = time.monotonic()
        waits = [self._deadline(client) - now for client in self._clients.values()]
        if self._next is not None and self._making is None:
            waits.append(self._next_at - now)
        return max(0.0, min(waits)) if waits else None

    def tend(self) -> None:
        """Turn away the clients whose time is up, and begin a page if it is time."""
        now = time.monotonic()
        for client in [c for c in self._clients.values() if self._deadline(c) <= now]:
            self._drop(client)
        self._begin()

    def close(self) -> None:
        """End every conversation."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._door.close()

    def _deadline(self, client: _Client) -> float:
        crowded = len(self._clients) >= CLIENTS
        return client.since + (CROWDED_DEADLINE_S if crowded else CLIENT_DEADLINE_S)

    # Clients.

    def _admit(self, sock: socket.socket) -> None:
        client = self._clients[sock] = _Client(sock)
        action = self._as_callback(partial(self._readable, client))
        self._selector.register(sock, selectors.EVENT_READ, action)

    def _readable(self, client: _Client) -> None:
        try:
            data = client.sock.recv(HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.head += data
        client.wants = parse(bytes(client.head))
        if client.wants is None:
            return
        self._selector.unregister(client.sock)
        if client.wants is not Wants.PAGE and client.wants is not Wants.HEAD:
            self._send(client, b"")
            return
        if self._next is None:
            self._next = _Page(self._pieces())
        self._next.clients.append(client)
        self._begin()

    def _send(self, client: _Client, page: bytes) -> None:
        assert client.wants is not None
        client.left = memoryview(answer(client.wants, CONTENT_TYPE, page))
        client.since = time.monotonic()
        action = self._as_callback(partial(self._writable, client))
        self._selector.register(client.sock, selectors.EVENT_WRITE, action)

    def _writable(self, client: _Client) -> None:
        try:
            client.left = client.left[client.sock.send(client.left) :]
        except BlockingIOError:
            return
        except OSError:
            client.left = memoryview(b"")
        if not client.left:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        del self._clients[client.sock]
        try:
            self._selector.unregister(client.sock)
        except KeyError:
            pass  # it waits for a page
        for page in (self._making, self._next):
            if page is not None and client in page.clients:
                page.clients.remove(client)
                self._pass_on(page)
        _linger(client.sock)
        self._door.look()

    # Pages.

    def _begin(self) -> None:
        """Begin with the next page, if anybody waits for it and it is time."""
        if self._making is None and self._next is not None and time.monotonic() >= self._next_at:
            self._making, self._next = self._next, None
            self._pass_on(self._making)

    def _pass_on(self, page: _Page) -> None:
        """Have the first of those who wait for the page that is made be told by the poll set when
        it is time for another slice: its socket has room, so that is at each turn.
        """
        if page is not self._making:
            if not page.clients:
                self._next = None
            return
        if not page.clients:
            self._making = None  # nobody wants it any more
            self._next_at = time.monotonic() + PAUSE_S
            return
        first = page.clients[0]
        if first.sock not in self._selector.get_map():
            action = self._as_callback(self._slice)
            self._selector.register(first.sock, selectors.EVENT_WRITE, action)

    def _slice(self) -> None:
        page = self._making
        assert page is not None
        if not page.go_on():
            return
        self._making = None
        self._next_at = time.monotonic() + PAUSE_S
        self._selector.unregister(page.clients[0].sock)
        assert page.content is not None
        for client in page.clients:
            self._send(client, page.content)


def _linger(sock: socket.socket) -> None:
    """Close it. What has come and was not read would make the kernel take the answer back."""
    try:
        sock.shutdown(socket.SHUT_WR)
        sock.recv(HEAD_BYTES)
    except OSError:
        pass
    sock.close()
