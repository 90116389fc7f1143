"""The receive buffers that a driver keeps on a queue, for a device to write into at any time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class ReceiveBuffers:
    """Buffers of `size` bytes: `tokens` are the requests of those which the device has.

    What the device wrote waits in `filled`, oldest first. A buffer is offered anew once its content
    was received, so both together are as many as there were at first.
    """

    def __init__(self, size: int, tokens: Iterable[int]) -> None:
        self.size = size
        self.filled: deque[bytes] = deque()
        self._offered = set(tokens)

    def offered(self, token: int) -> None:
        """One more request has such a buffer."""
        self._offered.add(token)

    def completed(self, token: int, content: bytes) -> bool:
        """The request came back with `content`; False if it is none of these."""
        if token not in self._offered:
            return False
        self._offered.remove(token)
        self.filled.append(content)
        return True
