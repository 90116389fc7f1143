"""Streams between a guest and a program of the host: what they are, and the host's end of one."""

from __future__ import annotations

import socket

from tests.bench.work import KIB, Work

PORT = 5000
"""On which the program listens, for the guest to connect to."""
STALL_S = 30.0
UNIT = 1000
"""Bytes that the tables count as one."""
CHUNK = 256 * KIB
"""Bytes that the program moves at a time."""

TO_HOST = Work("to-host", "a stream of the guest's", 1)
TO_GUEST = Work("to-guest", "a stream to the guest", 1)
WORKS = TO_HOST, TO_GUEST


def read(program: socket.socket, size: int) -> None:
    """Read so many bytes. Raises OSError, as TimeoutError."""
    buffer = memoryview(bytearray(CHUNK))
    while size:
        got = program.recv_into(buffer[: min(size, CHUNK)])
        if not got:
            raise ConnectionResetError("the stream has ended")
        size -= got


def write(program: socket.socket, size: int) -> None:
    """Write so many bytes. Raises OSError, as TimeoutError."""
    chunk = memoryview(bytes(CHUNK))
    while size:
        size -= program.send(chunk[: min(size, CHUNK)])
