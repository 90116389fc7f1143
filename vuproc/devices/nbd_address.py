"""Where an NBD export is: a URI, as its specification (doc/uri.md) has them."""

from __future__ import annotations

import socket
from urllib.parse import parse_qs, unquote, urlsplit

from msgspec import Struct

from vuproc.spec.nbd import MAX_NAME, PORT

FORMS = "nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"


class Address(Struct, frozen=True):
    """A server and one of its exports. `path` is that of a Unix socket, or there is a host."""

    export: str
    host: str = ""
    port: int = PORT
    path: str = ""

    @classmethod
    def of(cls, uri: str) -> Address:
        """Raises ValueError, which says what is wrong with the URI."""
        parts = urlsplit(uri)
        export = unquote(parts.path.removeprefix("/"))
        if len(export.encode()) > MAX_NAME:
            raise ValueError(f"the export's name has more than {MAX_NAME} bytes")
        if parts.scheme in ("nbds", "nbds+unix"):
            raise ValueError("TLS is not to be had; tunnel it, as by stunnel or ssh -L")
        if parts.scheme == "nbd+unix":
            paths = parse_qs(parts.query).get("socket", [])
            if len(paths) != 1 or not paths[0].startswith("/"):
                raise ValueError("a Unix socket is named by its absolute path: ?socket=/PATH")
            return cls(export, path=paths[0])
        if parts.scheme != "nbd" or not parts.hostname:
            raise ValueError(f"it is {FORMS}")
        if parts.query:
            raise ValueError(f"?{parts.query} means nothing here")
        return cls(export, host=parts.hostname, port=parts.port or PORT)

    def connect(self, timeout_s: float) -> socket.socket:
        """A connection to the server, with that bound for each of its calls. Raises OSError."""
        if self.path:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                connected.settimeout(timeout_s)
                connected.connect(self.path)
            except BaseException:
                connected.close()
                raise
            return connected
        connected = socket.create_connection((self.host, self.port), timeout_s)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connected

    def __str__(self) -> str:
        where = self.path or f"{self.host}:{self.port}"
        return f"export {self.export!r} at {where}" if self.export else f"the export at {where}"
