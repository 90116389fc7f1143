"""A socket by which scripts of a test rig talk to a device: a line each, and a line in answer."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from vuproc.device import Device
from vuproc.fd import Fd
from vuproc.texts import described

MOST_CLIENTS = 16
MOST_LINE = 1024
"""Bytes of a line."""
MOST_READ = 4096

Answer = Callable[[list[str]], str]


class Control:
    """Clients of a listening socket, in the worker of `device`.

    `answer` gets the words of a line; a ValueError of it is the answer, too, and so is any other
    mistake, of which the log has the traceback. A client who does not
    read what it is told is left. Connections end with the worker. `watched`: `watch` is taken, for
    who wants to hear what `tell` says.
    """

    def __init__(
        self, device: Device, listener: Fd, answer: Answer, *, watched: bool = False
    ) -> None:
        self._device = device
        self._listener = socket.socket(fileno=os.dup(listener.fileno()))
        self._answer = answer
        self._watched = watched
        self._clients: dict[socket.socket, bytes] = {}
        """What each has said of a line that is not whole yet."""
        self._watchers: set[socket.socket] = set()
        device.watch(self._listener, self._accept)

    def tell(self, line: str) -> None:
        """Tell those who have said `watch`."""
        for client in list(self._watchers):
            self._say(client, line)

    def close(self) -> None:
        """The worker ends."""
        for client in list(self._clients):
            self._leave(client)
        self._device.unwatch(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it has gone again
        if len(self._clients) >= MOST_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._clients[client] = b""
        self._device.watch(client, lambda: self._read(client))

    def _read(self, client: socket.socket) -> None:
        try:
            data = client.recv(MOST_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, rest = (self._clients[client] + data).split(b"\n")
        for line in lines:
            if client in self._clients:
                self._say(client, self._answered(client, line))
        if client in self._clients:
            self._clients[client] = rest
            if not data or len(rest) > MOST_LINE:
                self._leave(client)

    def _answered(self, client: socket.socket, line: bytes) -> str:
        if len(line) > MOST_LINE:
            return f"error: a line has at most {MOST_LINE} bytes"
        words = line.decode(errors="replace").split()
        if self._watched and words == ["watch"]:
            self._watchers.add(client)
            return "ok"
        try:
            return self._answer(words) if words else "ok"
        except ValueError as error:
            return f"error: {error}"
        except Exception as error:
            self._device.log.exception("%s", words[0])
            return f"error: {described(error)}"

    def _say(self, client: socket.socket, line: str) -> None:
        data = line.encode(errors="replace") + b"\n"
        try:
            if client.send(data) == len(data):
                return
        except OSError:
            pass
        self._leave(client)

    def _leave(self, client: socket.socket) -> None:
        if client in self._clients:
            self._device.unwatch(client)
            del self._clients[client]
            self._watchers.discard(client)
            client.close()
