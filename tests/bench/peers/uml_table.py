"""Between User-Mode Linux and a back-end that takes messages by the letter.

UML's SET_MEM_TABLE always has room for two regions, whatever their number; the crates of rust-vmm
refuse one that is longer than its number says. Here the rest is cut off. Only messages go this way:
kicks, calls and all data go past it.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.bench.backends import Running
from vuproc.spec.vhost_user import FrontendRequest

HEADER = struct.Struct("<III")
"""vhost-user: request, flags, size of the payload."""
TABLE, REGION = 8, 32
"""Bytes before the regions of SET_MEM_TABLE, and of each."""
MOST_FDS = 32
CHUNK = 65536
END_TIMEOUT_S = 5.0


@contextmanager
def cut(behind: Running, path: Path) -> Iterator[Running]:
    """`behind`, for one front-end that connects to `path`."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        carrier = threading.Thread(target=_carry, args=(listener, behind.socket))
        carrier.start()
        try:
            yield Running(path, behind.pids)
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            carrier.join(END_TIMEOUT_S)


def _carry(listener: socket.socket, behind: Path) -> None:
    """One connection, until either side ends it."""
    with suppress(OSError, EOFError), socket.socket(socket.AF_UNIX) as back:
        front, _ = listener.accept()
        with front:
            back.connect(str(behind))
            answers = threading.Thread(target=_answers, args=(back, front))
            answers.start()
            try:
                while True:
                    _message(front, back)
            finally:
                for end in (front, back):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                answers.join(END_TIMEOUT_S)


def _message(front: socket.socket, back: socket.socket) -> None:
    header, fds, _, _ = socket.recv_fds(front, HEADER.size, MOST_FDS)
    if not header:
        raise EOFError
    request, flags, size = HEADER.unpack(header + _exactly(front, HEADER.size - len(header)))
    payload = _exactly(front, size)
    if request == FrontendRequest.SET_MEM_TABLE:
        payload = payload[: TABLE + REGION * struct.unpack_from("<I", payload)[0]]
    _send(back, HEADER.pack(request, flags, len(payload)) + payload, fds)


def _answers(back: socket.socket, front: socket.socket) -> None:
    with suppress(OSError, EOFError):
        while True:
            data, fds, _, _ = socket.recv_fds(back, CHUNK, MOST_FDS)
            if not data:
                break
            _send(front, data, fds)
    with suppress(OSError):
        front.shutdown(socket.SHUT_RDWR)


def _exactly(source: socket.socket, size: int) -> bytes:
    """Raises EOFError."""
    found = b""
    while len(found) < size:
        part = source.recv(size - len(found))
        if not part:
            raise EOFError
        found += part
    return found


def _send(to: socket.socket, data: bytes, fds: list[int]) -> None:
    try:
        sent = socket.send_fds(to, [data], fds)
        to.sendall(data[sent:])
    finally:
        for fd in fds:
            os.close(fd)
