"""What the master and its forkserver say to each other: a message a datagram, or several orders in
one, whose answers come in another."""

from __future__ import annotations

import signal

import msgspec

from vuproc.fd import Fd
from vuproc.workers.channel import Channel

FOR_THE_MASTER = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
)
"""Signals that neither the forkserver nor a worker acts on."""


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Start a worker with this end of its control channel, and this file for its stack.

    `locked`: the forkserver is to have no more rights than the master has by now, which may have
    started it before it gave up its own.
    """

    control: Fd
    stack: Fd
    locked: bool = False


class Forked(msgspec.Struct, frozen=True, tag=True):
    """The worker is there."""

    pid: int
    pidfd: Fd


class NotForked(msgspec.Struct, frozen=True, tag=True):
    """There is no worker: `call` failed with `errno`."""

    call: str
    errno: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A worker has ended; a negative code is the number of the signal that killed it."""

    pid: int
    code: int


class Imported(msgspec.Struct, frozen=True, tag=True):
    """What every worker needs is imported; said once, first."""


AnyForkReport = Imported | Forked | NotForked | Ended


def warm_up() -> None:
    """As that of `control`, for these messages."""
    for kind in (Fork, AnyForkReport):
        msgspec.msgpack.Decoder(kind)


MasterForkChannel = Channel[Fork, AnyForkReport]
ServerForkChannel = Channel[AnyForkReport, Fork]
