"""What a program and the master of its daemon say to each other, one datagram a message.

The program asks, the master answers each `Ask` once with an `Answer` that repeats the serial, and
tells of events in between; its first word is `Began`. A start that fails is told by `Refused`, and
then the master ends.
"""

from __future__ import annotations

import socket
from typing import Literal

import msgspec

from vuproc.events import AnyEvent
from vuproc.fd import Fd
from vuproc.workers.channel import Channel

Whose = Literal["device", "socket", "host", "file", "bug"]
"""Whose matter a failed start is; "file": of the device file, with its errors."""

PROGRAM = "program"
"""The name of the master's end of the channel, as it is handed from one master to the next."""
LIFE = "program-life"
"""That of the program's pidfd."""
START = "program-start"
"""That of the file which says what to serve."""
GIVEN = "given"
"""That of a socket of the program's, which is served in place of one with a path."""


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A verb of `vuproc.ops.operations`. `wanted`: for "reload", what is to be served, sealed."""

    serial: int
    verb: str
    queue: int | None = None
    wanted: Fd | None = None


class Answer(msgspec.Struct, frozen=True, tag=True):
    """`error` if the master refuses, else what the verb gives: msgpack in a sealed file, for it may
    be longer than a datagram.
    """

    serial: int
    error: str | None = None
    result: Fd | None = None


class Began(msgspec.Struct, frozen=True, tag=True):
    """A master has begun, and has done nothing yet: it is this process."""

    pid: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The device cannot be served. `errors`: of a device file, as `ConfigError` has them."""

    whose: Whose
    reason: str
    errors: tuple[tuple[str, int, int, str], ...] = ()


AnyTold = AnyEvent | Answer | Began | Refused
ProgramChannel = Channel[Ask, AnyTold]
LinkChannel = Channel[AnyTold, Ask]


def program_end(sock: socket.socket) -> ProgramChannel:
    """The program's end."""
    return Channel(sock, AnyTold)


def link_end(sock: socket.socket) -> LinkChannel:
    """The master's end."""
    return Channel(sock, Ask)
