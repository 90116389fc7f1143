"""A disk that finishes some requests late, so that what is in flight is never all of the newest.

A back-end without a record of what it has in flight could only go on from the used index: that is
right for as long as requests are completed in order, and loses some where they are not.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, ClassVar

from vuproc.devices.blk import Blk

if TYPE_CHECKING:
    from vuproc.shm.request import Request

EACH = 3
"""Every third request is late."""
_CLOCK_MONOTONIC = 1
_TIMER_BYTES = 8


class LaggingBlk(Blk):
    """virtio-blk, out of order."""

    late_s: ClassVar[float] = 0.03

    def setup(self, queue: int) -> None:
        super().setup(queue)
        self._count = 0
        self._late: list[Request] = []
        # TFD_NONBLOCK and TFD_CLOEXEC are O_NONBLOCK and O_CLOEXEC.
        self._timer = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self.watch(self._timer, self._catch_up)

    def handle(self, request: Request) -> None:
        self._count += 1
        if self._count % EACH:
            super().handle(request)
            return
        request.defer()
        if not self._late:
            # struct itimerspec: no interval, then seconds and nanoseconds.
            once = struct.pack("qqqq", 0, 0, 0, int(self.late_s * 1e9))
            _libc.timerfd_settime(self._timer, 0, once, None)
        self._late.append(request)

    def ring_stopped(self, queue: int) -> None:
        if self._late:
            self.log.info("%d requests are left in flight", len(self._late))
            self._late.clear()

    def _catch_up(self) -> None:
        os.read(self._timer, _TIMER_BYTES)
        late, self._late = self._late, []
        for request in reversed(late):
            if not request.finished:  # the ring may be gone
                super().handle(request)
            if not request.finished:
                request.finish()


class SlowBlk(LaggingBlk):
    """The same on storage for which a guest would have to stand still for long."""

    late_s = 0.3


_libc = ctypes.CDLL(None, use_errno=True)
