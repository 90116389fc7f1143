"""In-band notifications as a front-end has them: messages in place of kick and call descriptors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vuproc.testing.bell import Bell

if TYPE_CHECKING:
    from vuproc.testing.frontend import FrontEnd


class InbandKick(Bell):
    """VRING_KICK for ring `index`. The back-end is not told of the descriptor."""

    def __init__(self, front_end: FrontEnd, index: int) -> None:
        super().__init__(rings=False)
        self._front_end = front_end
        self._index = index

    def ring(self) -> None:
        """Send one, and wait until the device has it."""
        self._front_end.request("VRING_KICK", index=self._index, num=0)


class InbandCall(Bell):
    """VRING_CALL for ring `index`, on the back-end channel, which must be open. The back-end is not
    told of the descriptor.
    """

    def __init__(self, front_end: FrontEnd, index: int) -> None:
        super().__init__()
        self._front_end = front_end
        self._index = index

    def wait(self, timeout_s: float) -> bool:
        """Sleep until one comes and take all that are there; False at the timeout."""
        channel = self._front_end.channel
        if channel is None:
            raise ValueError("in-band notifications need a back-end channel: open_channel()")
        deadline = time.monotonic() + timeout_s
        while not channel.calls[self._index]:
            if not channel.read(deadline - time.monotonic()):
                return False
        channel.calls[self._index] = 0
        return True
