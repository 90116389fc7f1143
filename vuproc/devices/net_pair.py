"""A pair of a receive and a transmit queue, and the outside that its frames go to, in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vuproc.devices.net_backend import Backend
from vuproc.devices.net_buffers import Buffers
from vuproc.devices.net_filter import Filter
from vuproc.devices.net_pcap import Capture
from vuproc.devices.net_state import NetState
from vuproc.spec.net import HEADER, MAX_FRAME

if TYPE_CHECKING:
    from vuproc.device import Device
    from vuproc.shm.request import Request

MOST_AT_ONCE = 256
"""Frames for the driver before the worker looks at its queues again."""

_HEADER_BYTES = HEADER.size


class Pair:
    """Queue `receive` and the one behind it, in the worker of both. Owns the back-end."""

    def __init__(
        self,
        device: Device,
        receive: int,
        backend: Backend,
        state: NetState,
        capture: Capture | None,
    ) -> None:
        self.backend = backend
        self.buffers = Buffers(device, receive)
        self.filter: Filter | None = None
        """Which frames the driver is to have; None: all."""
        self._device = device
        self._queue = receive
        self._state = state
        self._capture = capture
        self._waiting: bytes | None = None
        """A frame that waits for buffers."""

    def transmit(self, request: Request) -> None:
        """Send one frame: its header, in which nothing counts without offloads, and its bytes."""
        header = request.read(_HEADER_BYTES)
        is_frame = len(header) == _HEADER_BYTES and 0 < request.readable <= MAX_FRAME
        if not is_frame or not self.send(header, request.read()):
            self._device.count_dropped(request.queue)

    def send(self, header: bytes, frame: bytes) -> bool:
        """Give the back-end a frame; False: it was dropped."""
        if self._state.down:
            return False
        if self._capture is not None:
            self._record(frame)
        backend = self.backend
        return backend.send(header + frame if backend.with_headers else frame)

    def receive(self) -> bool:
        """Give the driver what there is; a frame that has no room is dropped and counted. Whether
        there may be more.
        """
        backend = self.backend
        for _ in range(MOST_AT_ONCE):
            frame, self._waiting = self._waiting, None
            if frame is None and (frame := backend.receive()) is None:
                return False
            if self._state.down:
                continue
            header = b""
            if backend.with_headers:
                header, frame = frame[:_HEADER_BYTES], frame[_HEADER_BYTES:]
            if self.filter is not None and not self.filter.passes(frame):
                continue
            if self.buffers.deliver(header, frame):
                if self._capture is not None:
                    self._record(frame)
            elif backend.patient:
                self._waiting = frame
                return False
            else:
                self._device.count_dropped(self._queue)
        return True

    def _record(self, frame: bytes) -> None:
        assert self._capture is not None
        try:
            self._capture.record(frame)
        except OSError as error:
            self._device.log.error("nothing more is captured: %s", error.strerror)
            self._capture = None
