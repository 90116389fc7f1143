"""Where the frames of a network device go, and where those for its driver come from."""

from __future__ import annotations

import struct
from collections import deque
from typing import ClassVar

_LEAST_FRAME = 60
"""Bytes of the shortest frame of Ethernet, without its checksum."""
_RARP = struct.Struct("!6s6sHHHBBH6s4s6s4s")
"""An Ethernet header with a RARP request (RFC 903)."""


class Backend:
    """The outside of one pair of queues, in the worker of the pair. No call may wait.

    Frames are whole Ethernet frames.
    """

    with_headers: ClassVar[bool] = False
    """Whether each frame begins with virtio's header (`HEADER.size` bytes, 5.1.6), both ways."""
    patient: ClassVar[bool] = False
    """Whether a frame for which the driver has no buffers waits for some, and is not dropped."""

    def send(self, frame: bytes) -> bool:
        """Take one frame of the driver's; False: it had to be dropped."""
        raise NotImplementedError(f"{type(self).__name__}.send")

    def receive(self) -> bytes | None:
        """The next frame for the driver, or None. Asked for after each `send`, and when `fileno`
        is readable, until there is none.
        """
        raise NotImplementedError(f"{type(self).__name__}.receive")

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to `receive`; -1: there is only
        after a `send`, or when the driver has buffers for one that is `patient`.
        """
        return -1

    def accept(self, features: int) -> None:
        """The driver has accepted these features, or none any more (0), less the offloads that it
        has switched off.
        """

    def use(self, used: bool) -> None:
        """The driver has the pair in use, or not, so that no frames should come by it. The first
        always is.
        """

    def close(self) -> None:
        """The worker ends."""


class Null(Backend):
    """Nobody is there: what is sent is dropped, and nothing comes."""

    def send(self, frame: bytes) -> bool:
        """Drop it."""
        return False

    def receive(self) -> bytes | None:
        """Never anything."""
        return None


class Loopback(Backend):
    """A cable from the pair's end to its beginning: each frame comes back."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()

    def send(self, frame: bytes) -> bool:
        """Keep it until it is received, which is at once."""
        self._frames.append(frame)
        return True

    def receive(self) -> bytes | None:
        """The oldest that was sent."""
        return self._frames.popleft() if self._frames else None


def rarp_request(mac: bytes) -> bytes:
    """A frame by which an interface asks for its own address, and tells the network where it is."""
    everybody, nobody = b"\xff" * 6, bytes(4)
    fields = (everybody, mac, 0x8035, 1, 0x0800, 6, 4, 3, mac, nobody, mac, nobody)
    return _RARP.pack(*fields).ljust(_LEAST_FRAME, b"\0")
