"""Kick, call and error descriptors as front-ends make them: an eventfd, a pipe or a socket pair."""

from __future__ import annotations

import enum
import os
import select
import socket

from vuproc.fd import Fd

_CHUNK = 4096
_ONE = (1).to_bytes(8, "little")


class BellKind(enum.Enum):
    """What the descriptor is."""

    EVENTFD = "eventfd"
    """QEMU, Cloud Hypervisor, crosvm, libblkio."""
    PIPE = "pipe"
    """Older User-Mode Linux."""
    SOCKET = "socket"
    """User-Mode Linux."""


class Bell:
    """A notification descriptor: `ours` to wait on or to ring, `theirs` to send to the back-end.

    rings: the back-end writes and we wait (call, err); else we write (kick). Both owners may be the
    same eventfd. All blocking, as a front-end's may be: whoever writes without looking may hang.
    """

    def __init__(self, kind: BellKind = BellKind.EVENTFD, *, rings: bool = True) -> None:
        self.kind = kind
        if kind is BellKind.EVENTFD:
            self.ours = self.theirs = Fd(os.eventfd(0, os.EFD_CLOEXEC))
        elif kind is BellKind.PIPE:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            ends = (reader, writer) if rings else (writer, reader)
            self.ours, self.theirs = Fd(ends[0]), Fd(ends[1])
        else:
            left, right = socket.socketpair()
            self.ours, self.theirs = Fd(left.detach()), Fd(right.detach())

    def ring(self) -> None:
        """Write one notification."""
        os.write(self.ours.fileno(), _ONE)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a notification comes and take all that are there; False at the timeout."""
        poller = select.poll()
        poller.register(self.ours.fileno(), select.POLLIN)
        if not poller.poll(max(0.0, timeout_s) * 1000):
            return False
        return bool(os.read(self.ours.fileno(), _CHUNK))

    def count(self) -> int:
        """What an eventfd holds, without reading it."""
        with open(f"/proc/self/fdinfo/{self.ours.fileno()}", encoding="ascii") as info:
            for line in info:
                if line.startswith("eventfd-count:"):
                    return int(line.split()[1], 16)
        raise ValueError("not an eventfd")

    def close(self) -> None:
        """Close both ends."""
        self.ours.close()
        self.theirs.close()
