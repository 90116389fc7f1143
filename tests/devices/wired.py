"""A network device with a back-end of its own: frames come and go through a datagram socket."""

from __future__ import annotations

import contextlib
import socket
from typing import Annotated

from msgspec import Meta

from vuproc import FilePath
from vuproc.devices.net import Net
from vuproc.devices.net_backend import Backend
from vuproc.devices.net_options import NetOptions


class WiredOptions(NetOptions, kw_only=True):
    """Where its wire is."""

    wire: Annotated[FilePath, Meta(description="The device's end of the wire.")]
    far: Annotated[FilePath, Meta(description="The other end.")]


class Wire(Backend):
    """One frame a datagram."""

    def __init__(self, here: str, far: str) -> None:
        self._far = far
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(here)

    def send(self, frame: bytes) -> bool:
        with contextlib.suppress(OSError):
            return self._socket.sendto(frame, self._far) == len(frame)
        return False

    def receive(self) -> bytes | None:
        with contextlib.suppress(BlockingIOError):
            return self._socket.recv(65536)
        return None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


class Wired(Net):
    """The same device, on such a wire."""

    options_type = WiredOptions
    options: WiredOptions

    def make_backend(self, pair: int) -> Backend:
        return Wire(self.options.wire, self.options.far)
