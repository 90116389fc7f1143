"""The display of a device as a front-end has it: what the device shows is there to be read."""

from __future__ import annotations

import array
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from vuproc.errors import VuprocError
from vuproc.fd import Fd
from vuproc.spec.vhost_user_gpu import (
    DISPLAY,
    DISPLAY_INFO,
    EDID,
    FLAG_REPLY,
    GPU,
    HEADER,
    NOTHING,
    PIXEL,
    U64,
    GpuFeature,
    GpuRequest,
)
from vuproc.testing.channel import REPLY_TIMEOUT, wait_readable

FDS_MAX = 8
_FD_SIZE = array.array("i").itemsize


class Shown(NamedTuple):
    """One message of the device. The descriptors are whose it is that takes it."""

    request: GpuRequest
    fields: dict[str, Any]
    pixels: bytes
    fds: tuple[Fd, ...]


class Screen:
    """The pixels of one scanout, four bytes each."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._lines = [bytearray(width * PIXEL) for _ in range(height)]

    def put(self, fields: dict[str, Any], pixels: bytes) -> None:
        """Carry out UPDATE."""
        x, y, width = fields["x"], fields["y"], fields["width"] * PIXEL
        if x * PIXEL + width > self.width * PIXEL or y + fields["height"] > self.height:
            raise VuprocError(f"an update of {fields} of a screen of {self.width}x{self.height}")
        for line in range(fields["height"]):
            self._lines[y + line][x * PIXEL : x * PIXEL + width] = pixels[
                line * width : (line + 1) * width
            ]

    def pixel(self, x: int, y: int) -> bytes:
        """The four bytes of a pixel."""
        return bytes(self._lines[y][x * PIXEL : (x + 1) * PIXEL])


class DisplayEnd:
    """The front-end's end of the display's socket. `size` is that of its one screen."""

    def __init__(self, sock: socket.socket, size: tuple[int, int] = (640, 480)) -> None:
        self.socket = sock
        self.size = size
        self.features = GpuFeature.EDID | GpuFeature.DMABUF2
        self.chosen = GpuFeature(0)
        self.screens: dict[int, Screen] = {}
        self.edid = b"edid of a test"

    def receive(self, timeout_s: float = REPLY_TIMEOUT) -> Shown:
        """The device's next message, carried out, and replied to if it is to be. Raises VuprocError
        for one that breaks the rules, or if none comes.
        """
        shown = self.take(timeout_s)
        fields = shown.fields
        match shown.request:
            case GpuRequest.SET_PROTOCOL_FEATURES:
                self.chosen = GpuFeature(fields["value"])
            case GpuRequest.SCANOUT:
                self.screens[fields["scanout"]] = Screen(fields["width"], fields["height"])
            case GpuRequest.UPDATE:
                self.screens[fields["scanout"]].put(fields, shown.pixels)
        if GPU[shown.request].reply is not None:
            self.reply(shown.request, self._answer(shown.request))
        return shown

    def take(self, timeout_s: float = REPLY_TIMEOUT) -> Shown:
        """The same, and nothing is done."""
        deadline = time.monotonic() + timeout_s
        head, fds = self._read(HEADER.size, deadline, fds=FDS_MAX)
        header = HEADER.unpack(head)
        row = GPU[GpuRequest(header["request"])]
        payload, _ = self._read(header["size"], deadline)
        if header["flags"] or not row.fds[0] <= len(fds) <= row.fds[1]:
            raise VuprocError(f"{row.request.name}: flags {header['flags']:#x}, {len(fds)} fds")
        fields, pixels = row.payload.unpack(payload), payload[row.payload.size :]
        wanted = fields["width"] * fields["height"] * PIXEL if row.pixels else 0
        if len(pixels) != wanted:
            raise VuprocError(f"{row.request.name}: {len(pixels)} bytes of pixels, not {wanted}")
        return Shown(row.request, fields, pixels, fds)

    def reply(
        self, request: int, payload: bytes, *, flags: int = FLAG_REPLY, size: int | None = None
    ) -> None:
        """Send a reply, or what a test would have for one."""
        length = len(payload) if size is None else size
        self.socket.sendall(HEADER.pack(request=request, flags=flags, size=length) + payload)

    def close(self) -> None:
        """End it."""
        self.socket.close()

    def _answer(self, request: GpuRequest) -> bytes:
        match request:
            case GpuRequest.GET_PROTOCOL_FEATURES:
                return U64.pack(value=int(self.features))
            case GpuRequest.GET_DISPLAY_INFO:
                width, height = self.size
                return DISPLAY_INFO.pack(
                    displays=DISPLAY.pack(width=width, height=height, enabled=1)
                )
            case GpuRequest.GET_EDID:
                return EDID.pack(size=len(self.edid), edid=self.edid)
        return NOTHING.pack()

    def _read(self, size: int, deadline: float, *, fds: int = 0) -> tuple[bytes, tuple[Fd, ...]]:
        data, found = b"", array.array("i")
        while len(data) < size:
            if not wait_readable(self.socket, deadline):
                raise VuprocError(f"{len(data)} of {size} bytes of a message came")
            room = socket.CMSG_SPACE(fds * _FD_SIZE) if fds and not data else 0
            part, ancillary, _, _ = self.socket.recvmsg(size - len(data), room)
            for _, _, numbers in ancillary:
                found.frombytes(numbers)
            if not part:
                raise VuprocError("the device has ended the display")
            data += part
        return data, _owned(found)


def _owned(numbers: Sequence[int]) -> tuple[Fd, ...]:
    return tuple(Fd(number) for number in numbers)
