"""The admin socket: one line of JSON in, one line of JSON out, then the connection ends.

It lies beside the vhost-user socket with mode 0600: who may connect may restart queues. Requests
are `{"verb": "status"}`, `{"verb": "queue-restart", "queue": 1}` and the like; answers are
`{"ok": true, ...}` or `{"ok": false, "error": "..."}`.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from vuproc import texts
from vuproc.errors import VuprocError
from vuproc.listener import Listener
from vuproc.ops.door import AsCallback, Door
from vuproc.unix_path import ADMIN_SUFFIX, address_of

log = logging.getLogger("vuproc.master")

PERMISSIONS = 0o600
REQUEST_BYTES = 4096
CLIENTS = 8
"""Clients served at once; further ones wait in the backlog."""
CLIENT_DEADLINE_S = 2.0
"""Seconds a client has to send its line, and to take the answer."""
LATER_DEADLINE_S = 50.0
"""Seconds that an answer may be late, of a verb that asks elsewhere."""
RELOAD_S = LATER_DEADLINE_S + 10.0
"""Seconds that a client has patience with a reload."""
BACKLOG_LOOK_S = 0.01
"""Seconds between two attempts of a client to get into a full backlog."""
ANSWER_BYTES = 1 << 20
"""Bytes of the longest answer a client takes."""


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What a client wants. `queue` is for the verbs about one queue, `up` for that about a link,
    and `after` is the number of an event.
    """

    verb: str
    queue: int | None = None
    up: bool | None = None
    after: int | None = None


class Later:
    """The answer of a verb that does not have it yet: it is told once, to whoever has asked."""

    def __init__(self) -> None:
        self._result: dict[str, Any] | AdminError | None = None
        self._then: Callable[[dict[str, Any] | AdminError], None] | None = None

    def tell(self, result: dict[str, Any] | AdminError) -> None:
        """This is it."""
        if self._result is not None:
            return
        self._result = result
        if self._then is not None:
            self._then(result)

    def then(self, action: Callable[[dict[str, Any] | AdminError], None]) -> None:
        """Call this with it, now or when it comes."""
        self._then = action
        if self._result is not None:
            action(self._result)


Verb = Callable[[Request], dict[str, Any] | Later]


class AdminError(VuprocError):
    """A request that cannot be carried out; the text goes to the client."""


class AdminServer:
    """Listens on a socket of mode `PERMISSIONS` and answers from `verbs`, inside the master's poll
    set. Owns `listener`.
    """

    def __init__(
        self,
        listener: Listener,
        selector: selectors.BaseSelector,
        verbs: dict[str, Verb],
        as_callback: AsCallback = lambda action: action,
    ) -> None:
        """`as_callback` makes what `selector` gets as data of a function."""
        self._as_callback = as_callback
        self._selector = selector
        self._verbs = verbs
        self._clients: dict[socket.socket, tuple[bytearray, float]] = {}
        self._waiting: dict[socket.socket, float] = {}
        """Clients whose answer comes later, and until when they have it or none."""
        listener.open()
        self._door = Door(listener, selector, as_callback, self._has_room, self._admit)

    def due(self) -> float | None:
        """Seconds until a client's time is up, or None if there is no client."""
        deadlines = [deadline for _, deadline in self._clients.values()]
        first = min([*deadlines, *self._waiting.values()], default=None)
        return None if first is None else max(0.0, first - time.monotonic())

    def tend(self) -> None:
        """Turn away the clients whose time is up."""
        now = time.monotonic()
        for client in [c for c, (_, deadline) in self._clients.items() if deadline <= now]:
            self._drop(client)
        for client in [c for c, deadline in self._waiting.items() if deadline <= now]:
            self._told(client, AdminError("no answer in time"))

    def close(self) -> None:
        """End every conversation and remove the socket."""
        for client in list(self._waiting):
            self._told(client, AdminError("the device ends"))
        for client in list(self._clients):
            self._drop(client)
        self._door.close()

    def _has_room(self) -> bool:
        return len(self._clients) + len(self._waiting) < CLIENTS

    def _admit(self, client: socket.socket) -> None:
        self._clients[client] = (bytearray(), time.monotonic() + CLIENT_DEADLINE_S)
        action = self._as_callback(partial(self._readable, client))
        self._selector.register(client, selectors.EVENT_READ, action)

    def _readable(self, client: socket.socket) -> None:
        line, _ = self._clients[client]
        try:
            data = client.recv(REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        line += data
        if data and b"\n" not in line and len(line) <= REQUEST_BYTES:
            return
        if b"\n" not in line:
            self._drop(client)
            return
        # The verb may wait, and whoever looks after other clients meanwhile leaves this one alone.
        self._selector.unregister(client)
        del self._clients[client]
        answer = self._answer(bytes(line.partition(b"\n")[0]))
        if isinstance(answer, Later):
            self._waiting[client] = time.monotonic() + LATER_DEADLINE_S
            answer.then(partial(self._told, client))
        else:
            self._say(client, answer)

    def _told(self, client: socket.socket, result: dict[str, Any] | AdminError) -> None:
        """The answer that a client waits for, if it still does."""
        if self._waiting.pop(client, None) is not None:
            self._say(client, _good(result) if isinstance(result, dict) else _bad(result))

    def _say(self, client: socket.socket, answer: dict[str, Any]) -> None:
        left = bytearray(msgspec.json.encode(_fit(answer)) + b"\n")
        self._clients[client] = left, time.monotonic() + CLIENT_DEADLINE_S
        action = self._as_callback(partial(self._writable, client))
        self._selector.register(client, selectors.EVENT_WRITE, action)
        self._writable(client)

    def _writable(self, client: socket.socket) -> None:
        """Send as much of the answer as there is room for; the rest has until the deadline."""
        left, _ = self._clients[client]
        try:
            del left[: client.send(left)]
        except BlockingIOError:
            return
        except OSError:
            left.clear()
        if not left:
            self._drop(client)

    def _answer(self, line: bytes) -> dict[str, Any] | Later:
        try:
            request = msgspec.json.decode(line, type=Request)
            verb = self._verbs.get(request.verb)
            if verb is None:
                raise AdminError(f"unknown verb {request.verb!r}")
            result = verb(request)
            return result if isinstance(result, Later) else _good(result)
        except (msgspec.MsgspecError, UnicodeDecodeError, AdminError) as error:
            return _bad(error)

    def _drop(self, client: socket.socket) -> None:
        del self._clients[client]
        self._selector.unregister(client)
        client.close()
        self._door.look()


def _good(result: dict[str, Any]) -> dict[str, Any]:
    return {"ok": True, **result}


def _bad(error: Exception) -> dict[str, Any]:
    return {"ok": False, "error": str(error)}


def _fit(value: Any) -> Any:
    """The answer with every text in it fit to be encoded, and to be shown."""
    match value:
        case str():
            return texts.block(value)
        case dict():
            return {key: _fit(each) for key, each in value.items()}
        case list():
            return [_fit(each) for each in value]
        case _:
            return value


def ask(path: Path, request: Request, timeout_s: float = 10.0) -> dict[str, Any]:
    """Send one request to the admin socket beside the vhost-user socket `path`.

    Returns the answer. Raises AdminError if nobody listens there, or for an error's answer.
    """
    where = f"{path}{ADMIN_SUFFIX}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        try:
            _connect(client, Path(where), timeout_s)
            client.sendall(msgspec.json.encode(request) + b"\n")
            data = line_of(client)
        except OSError as error:
            raise AdminError(f"{where}: {error.strerror or error}") from error
    try:
        answer = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise AdminError(f"{where}: no answer that makes sense: {error}") from error
    if not answer.pop("ok", False):
        raise AdminError(str(answer.get("error", "failed")))
    return answer


def line_of(client: socket.socket) -> bytes:
    """The line that is the answer, or what there is of it. Raises OSError."""
    data = b""
    while not data.endswith(b"\n") and len(data) <= ANSWER_BYTES:
        more = client.recv(65536)
        if not more:
            break
        data += more
    return data


def _connect(client: socket.socket, path: Path, timeout_s: float) -> None:
    """Connect, also if others wait there already: a non-blocking socket is refused at once then."""
    deadline = time.monotonic() + timeout_s
    with address_of(path) as address:
        while True:
            try:
                client.connect(address)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(BACKLOG_LOOK_S)
