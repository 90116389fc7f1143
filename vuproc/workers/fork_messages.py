"""What the master and its forkserver say to each other, one datagram a message."""

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
    """Start a worker with this end of its control channel, and this file for its stack."""

    control: Fd
    stack: Fd


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
MasterForkChannel = Channel[Fork, AnyForkReport]
ServerForkChannel = Channel[AnyForkReport, Fork]
