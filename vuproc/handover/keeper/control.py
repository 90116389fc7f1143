"""Where a fleet is met by `vuproc status`, `reload` and `stop` with its folder's path.

A line of JSON in, a line of JSON out. The socket has an abstract name, made of the folder's
identity: the folder may be read-only, and nothing is left of a socket that has no file. Who may ask
is decided by the peer's user: ours, or root.
"""

import json
import os
import socket
import struct
from collections.abc import Callable

REQUEST_BYTES = 4096
CLIENTS_MOST = 8
"""Clients at a time; of more than that the oldest is dropped."""
_CREDENTIALS = struct.Struct("3i")

Verbs = dict[str, Callable[[], dict[str, object]]]


def address_of(folder: str) -> str:
    """The name of the socket for a folder. Raises OSError."""
    found = os.stat(folder)
    return f"\0vuproc-devices-{found.st_dev:x}-{found.st_ino:x}"


def user_of(sock: socket.socket) -> int:
    """Who is at the other end."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


class Control:
    """Listens for a folder, and answers by `verbs`. Raises OSError if the name is taken.

    A client whose verb is in `lasting` has its connection kept, and sees our end.
    """

    def __init__(self, folder: str, verbs: Verbs, lasting: tuple[str, ...]) -> None:
        self._verbs = verbs
        self._lasting = lasting
        self._clients: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(address_of(folder))
            self._socket.listen()
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Readable when a client wants to connect."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """A client that may ask, to be polled and given to `hear`; owned here."""
        try:
            client, _ = self._socket.accept()
        except OSError:
            return None
        if user_of(client) not in (os.getuid(), 0):
            client.close()
            return None
        client.setblocking(False)
        self._clients.append(client)
        return client

    def surplus(self) -> socket.socket | None:
        """A client that has to go, as there are too many."""
        return self._clients[0] if len(self._clients) > CLIENTS_MOST else None

    def hear(self, client: socket.socket) -> bool:
        """Answer what it asks, in one piece; whether it is to be heard any more."""
        try:
            line = client.recv(REQUEST_BYTES)
            if not line:
                return False
            verb = json.loads(line)["verb"]
            answer = {"ok": True, **self._verbs[verb]()}
        except BlockingIOError:
            return True
        except OSError:
            return False
        except (ValueError, KeyError, TypeError) as error:
            verb, answer = "", {"ok": False, "error": f"not understood: {error}"}
        client.setblocking(True)
        client.settimeout(1.0)
        try:
            client.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            return False
        client.setblocking(False)
        return verb in self._lasting

    def drop(self, client: socket.socket) -> None:
        """Close it."""
        self._clients.remove(client)
        client.close()

    def close(self) -> None:
        """Nobody can ask any more."""
        for client in list(self._clients):
            self.drop(client)
        self._socket.close()
