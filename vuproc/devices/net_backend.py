"""Where the frames of a network device go, and where those for its driver come from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

BackendName = Literal["null", "loopback"]


class Backend(Protocol):
    """The outside of one pair of queues, in the worker of the pair.

    Frames are whole Ethernet frames, without virtio's header. No call may wait.
    """

    def send(self, frame: bytes) -> bool:
        """Take one frame of the driver's; False: it had to be dropped."""

    def receive(self) -> bytes | None:
        """The next frame for the driver, or None. Asked for after each `send`, and when `fileno`
        is readable, until there is none.
        """

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to `receive`; -1: there is only
        after a `send`.
        """

    def close(self) -> None:
        """The worker ends."""


class Null:
    """Nobody is there: what is sent is dropped, and nothing comes."""

    def send(self, frame: bytes) -> bool:
        """Drop it."""
        return False

    def receive(self) -> bytes | None:
        """Never anything."""
        return None

    def fileno(self) -> int:
        """There is none."""
        return -1

    def close(self) -> None:
        """There is nothing to close."""


class Loopback:
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

    def fileno(self) -> int:
        """There is none: frames come by `send` alone."""
        return -1

    def close(self) -> None:
        """There is nothing to close."""


BACKENDS: dict[BackendName, Callable[[], Backend]] = {"null": Null, "loopback": Loopback}
"""By the words of the option `backend`."""
