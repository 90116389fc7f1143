"""What vuproc takes from the machine: tried before anything is served, and named if it is missing.

Containers and sandboxes leave out system calls and file systems. Found out in the middle of a
session, that would be an errno without a name.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from vuproc.errors import HostLacks
from vuproc.fd import Fd
from vuproc.handover.outbox import Outbox
from vuproc.handover.peek import looks_are_counted


def check() -> None:
    """Raises HostLacks with the first thing that is missing, and what to do about it."""
    for what, purpose, attempt, remedy in _NEEDS:
        try:
            attempt()
        except OSError as error:
            reason = f"but {error.strerror or error}; vuproc takes it {purpose}"
            raise HostLacks(what, reason, remedy) from error


def shortcomings() -> Iterator[str]:
    """What is missing that vuproc does without, and what that costs: a line of the log each."""
    if not looks_are_counted():
        yield (
            "there is no SO_PEEK_OFF of Unix sockets here: the front-end is disconnected if the "
            "master dies while it takes a message"
        )


def _proc() -> None:
    os.readlink("/proc/self/fd/0")
    with open("/proc/self/fdinfo/0", "rb"):
        pass


def _null() -> None:
    os.close(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))


def _memfd() -> None:
    os.close(os.memfd_create("vuproc-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))


def _pidfd() -> None:
    with Fd(os.pidfd_open(os.getpid())) as pidfd:
        signal.pidfd_send_signal(pidfd.fileno(), 0)


def _sockets() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        for sock in socket.socketpair(socket.AF_UNIX, kind):
            sock.close()


def _splice() -> None:
    with ExitStack() as stack:
        ours, theirs = map(stack.enter_context, socket.socketpair())
        outbox = Outbox.create()
        stack.callback(outbox.close)
        outbox.put(b"?")
        os.splice(outbox.read_end.fileno(), ours.fileno(), 1, flags=os.SPLICE_F_NONBLOCK)
        theirs.recv(1)


_FILTERED = "allow it where system calls are filtered (docker run --security-opt seccomp=FILE)"

_NEEDS: tuple[tuple[str, str, Callable[[], None], str], ...] = (
    (
        "/proc",
        "to tell what the descriptors of a front-end are",
        _proc,
        "mount it (mount -t proc proc /proc)",
    ),
    ("/dev/null", "to open it", _null, "mount a /dev with the usual devices"),
    ("memfd_create(2)", "for what outlives a process", _memfd, _FILTERED),
    (
        "pidfd_open(2) and pidfd_send_signal(2)",
        "to see its workers end",
        _pidfd,
        f"{_FILTERED}; Linux has it since 5.3",
    ),
    (
        "Unix sockets of every kind",
        "to talk to front-ends and workers",
        _sockets,
        "allow them (RestrictAddressFamilies=AF_UNIX of a service)",
    ),
    ("splice(2) to a Unix socket", "to go on after a death", _splice, _FILTERED),
)
