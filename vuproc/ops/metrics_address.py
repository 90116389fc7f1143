"""Where metrics are to be had: `unix:PATH`, or a loopback address with a port."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from vuproc.device_file.kinds import metrics_address
from vuproc.fd import Fd
from vuproc.handover.fd_store import METRICS, METRICS_LOCK, FdStore
from vuproc.listener import Listener, ListenError, Reserve
from vuproc.ops.door import Listening

BACKLOG = 16
PERMISSIONS = 0o600
"""Of a Unix socket: what it says is the user's own business."""


class TcpListener:
    """A listening TCP socket; takes over `sock`."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock = sock
        self._reserve = Reserve(name)
        sock.setblocking(False)

    def fileno(self) -> int:
        """The descriptor."""
        return self.sock.fileno()

    def accept(self) -> socket.socket | None:
        """The next connection, None if there is none to be had."""
        try:
            return self._reserve.accept(self.sock)
        except OSError:
            return None  # of TCP, errors of the connection (accept(2)): it is the client's matter

    def close(self) -> None:
        """Close it."""
        self._reserve.close()
        self.sock.close()


def listen(
    address: str,
    fd_store: FdStore,
    unix_listener: Callable[[Path, int, tuple[str, str]], Listener],
) -> Listening:
    """Listen there, by what a predecessor has left if that is it, and have it kept for a successor.

    `unix_listener` makes or takes over one at a path. Raises ListenError.
    """
    place = metrics_address(address)
    if isinstance(place, str):
        if not fd_store.names(METRICS_LOCK):
            fd_store.forget(METRICS)  # that of a TCP socket
        listener = unix_listener(Path(place), PERMISSIONS, (METRICS, METRICS_LOCK))
        listener.open()
        return listener
    lock, left = fd_store.take(METRICS_LOCK), fd_store.take(METRICS)
    if lock is not None:
        fd_store.discard(METRICS_LOCK, lock)
    sock = None if left is None else _usable(left, place)
    if sock is None:
        sock = _bound(address, place)
    fd_store.keep(METRICS, sock)
    return TcpListener(sock, address)


def _usable(left: Fd, place: tuple[str, int]) -> socket.socket | None:
    """A predecessor's socket, if it has that address."""
    sock = socket.socket(fileno=left.take())
    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[:2] == place:
        return sock
    sock.close()
    return None


def _bound(address: str, place: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"metrics: {address}", error.strerror or str(error)) from error
    return sock
