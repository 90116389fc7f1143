"""What the master and its forkserver say to each other, one datagram a message."""

from __future__ import annotations

import msgspec

from vuproc.workers.control import Channel


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Start a worker. Fds: its control channel, and the file for its stack."""


class Forked(msgspec.Struct, frozen=True, tag=True):
    """The worker is there. Fds: its pidfd."""

    pid: int


class NotForked(msgspec.Struct, frozen=True, tag=True):
    """There is no worker: `call` failed with `errno`."""

    call: str
    errno: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A worker has ended; a negative code is the number of the signal that killed it."""

    pid: int
    code: int


AnyForkReport = Forked | NotForked | Ended
MasterForkChannel = Channel[Fork, AnyForkReport]
ServerForkChannel = Channel[AnyForkReport, Fork]
