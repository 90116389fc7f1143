"""The buffers that a driver has posted to receive into, filled by one frame after the other."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vuproc.spec.net import HEADER

if TYPE_CHECKING:
    from vuproc.device import Device
    from vuproc.shm.request import Request

MOST_MERGED = 64
"""Receive buffers that one frame may take: as many as are shown to the driver at once."""
MOST_TAKEN = 64
"""Receive buffers that are looked at for one that a frame may begin in."""

_COUNT = struct.Struct("<H")
_BEFORE_COUNT = bytes(HEADER.offsets["num_buffers"])
"""The header up to `num_buffers`: without offloads it is all zeros (5.1.6.4.1)."""
_HEADERS = [_BEFORE_COUNT + _COUNT.pack(count) for count in range(MOST_MERGED + 1)]
"""The header of a frame in so many buffers."""


class Buffers:
    """Those of one receive queue, which `device` pulls when there is a frame."""

    def __init__(self, device: Device, queue: int) -> None:
        self.most = 1
        """Of one frame: MOST_MERGED, if the driver takes several (MRG_RXBUF)."""
        self._device = device
        self._queue = queue
        self._held: list[Request] = []
        """Those that were too few for the last frame."""

    def deliver(self, header: bytes, frame: bytes) -> bool:
        """Write one frame into as many as it takes; False: there are too few.

        header: the back-end's, or empty.
        """
        buffers = self._enough(HEADER.size + len(frame))
        if not buffers:
            return False
        count = len(buffers)
        head = header[: len(_BEFORE_COUNT)] + _COUNT.pack(count) if header else _HEADERS[count]
        data = memoryview(head + frame)
        for buffer in buffers:
            # All but the last are filled, as 5.1.6.4.1 has it.
            data = data[buffer.write(data) :]
        self._device.finish_together(buffers)
        return True

    def give_back(self) -> None:
        """Give back what is held for the next frame."""
        for buffer in self._held:
            if not buffer.finished:  # as all are if the ring broke
                buffer.release()
        self._held.clear()

    def _enough(self, needed: int) -> list[Request]:
        """Those with room for so many bytes; none, if the driver has too few at the moment."""
        held = self._held
        if held and held[0].finished:
            held.clear()  # the ring broke
        count = room = 0
        while room < needed:
            if count == self.most or (count == len(held) and not self._hold()):
                return []
            room += held[count].writable
            count += 1
        buffers = held[:count]
        del held[:count]
        return buffers

    def _hold(self) -> bool:
        """Take one more, to be kept until a frame fits; False: there is none."""
        for _ in range(MOST_TAKEN):
            buffer = self._device.take(self._queue)
            if buffer is None:
                break
            if buffer.writable >= HEADER.size:
                self._held.append(buffer)
                return True
            # 5.1.6.3.2: each has room for a header at least. The driver gets it back unused.
            buffer.finish(0)
        return False
