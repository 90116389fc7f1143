"""Networks that the bench serves, beside those of the device itself."""

from __future__ import annotations

import time

from vuproc.devices.net import Net
from vuproc.devices.net_native import Frames
from vuproc.devices.net_options import NetOptions

BATCH = 64
SIZE = 60
"""Bytes of a frame, as DPDK's test program has them: 64 with the checksum of Ethernet."""
AT_ONCE = 64
"""Batches between two looks at what else there is to do."""
EMPTY_S = 0.005
"""Time in which the driver has taken nothing, after which it is taken to be gone."""
PAUSE_S = 0.01


class Sink(Net):
    """Takes what comes, and counts it as dropped, as the null device does."""

    def frames(self, pair: int, frames: Frames) -> None:
        self.count_dropped(2 * pair + 1, len(frames))


class Source(Net):
    """Sends as many frames as the driver has buffers for, and sleeps while it has none."""

    def __init__(self, options: NetOptions) -> None:
        super().__init__(options)
        frame = b"\x02\0\0\0\0\x01" + b"\x02\0\0\0\0\x02" + b"\x88\xb5" + bytes(SIZE - 14)
        self._batch = Frames([frame] * BATCH)
        self._taken = 0.0

    def setup(self, queue: int) -> None:
        super().setup(queue)
        if queue == 0:
            self.call_soon(self._give)

    def frames(self, pair: int, frames: Frames) -> None:
        """What the driver sends by itself is nobody's."""

    def _give(self) -> None:
        sent = sum(self.send_frames(0, self._batch) for _ in range(AT_ONCE))
        now = time.monotonic()
        if sent:
            self._taken = now
        if now < self._taken + EMPTY_S:
            self.call_soon(self._give)
        else:
            self.call_later(PAUSE_S, self._give)
