"""Devices with a display, and what they say to it: the vhost-user-gpu protocol (GPU_SET_SOCKET).

The front-end shows what the device gives it: a scanout is a screen, of so many pixels, and the
device says which of them have changed.
"""

from __future__ import annotations

import array
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vuproc.device import Device
from vuproc.errors import DisplayBusy, DisplayLost, ReplyGivenUp
from vuproc.fd import Fd
from vuproc.outcome import Outcome
from vuproc.spec.layout import Layout, LayoutError
from vuproc.spec.vhost_user_gpu import (
    CURSOR_SIDE,
    DISPLAY,
    FLAG_REPLY,
    GPU,
    HEADER,
    PIXEL,
    SIDE_MAX,
    GpuFeature,
    GpuMessage,
    GpuRequest,
)

BACKLOG_MAX = 64 << 20
"""Bytes that wait for the front-end to take them: a scanout of 4096 by 4096."""
READ_BYTES = 4096
"""Of one read; no reply is longer."""

_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_ALL_FEATURES = GpuFeature.EDID | GpuFeature.DMABUF2

Call = Callable[..., object]
_Made = Callable[[dict[str, Any]], object]
"""Makes of a reply's fields what the device is to have."""


class DisplayInfo(NamedTuple):
    """A screen as the front-end would have it, in pixels."""

    x: int
    y: int
    width: int
    height: int
    enabled: bool


class GpuCodec:
    """Messages to bytes, and bytes to the replies that are due; no socket.

    `features` are those that were set. `follows`: a worker before this one had the display, and may
    have died with replies to come; what this one has not asked for is taken for one of those.
    """

    def __init__(self, *, follows: bool = False) -> None:
        self.features = GpuFeature(0)
        self._follows = follows
        self._due: deque[GpuMessage] = deque()
        self._bytes = bytearray()

    def encode(self, request: GpuRequest, pixels: bytes = b"", **fields: Any) -> bytes:
        """One message. Raises ValueError for what it cannot say."""
        row = GPU[request]
        if row.feature & ~self.features:
            raise ValueError(f"{request.name} needs {row.feature.name}, which is not set")
        for side in ("width", "height"):
            if not 0 <= fields.get(side, 0) <= SIDE_MAX:
                raise ValueError(f"{request.name}: {side} {fields[side]} is not 0 to {SIDE_MAX}")
        if row.pixels and len(pixels) != (wanted := fields["width"] * fields["height"] * PIXEL):
            raise ValueError(f"{request.name}: {len(pixels)} bytes of pixels, not {wanted}")
        try:
            payload = row.payload.pack(**fields)
        except LayoutError as error:
            raise ValueError(f"{request.name}: {error}") from None
        if row.reply is not None:
            self._due.append(row)
        size = len(payload) + len(pixels)
        return HEADER.pack(request=request, flags=0, size=size) + payload + pixels

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The replies that are whole by now, each to the first message that waits for one.

        Raises DisplayLost for what is none: then nothing that comes later can be told apart.
        """
        self._bytes += data
        replies = []
        while len(self._bytes) >= HEADER.size:
            header = HEADER.unpack(self._bytes)
            is_ours = not self._follows or self._is_due(header["request"])
            layout = self._expected(header) if is_ours else _others(header)
            end = HEADER.size + layout.size
            if len(self._bytes) < end:
                break
            if is_ours:
                replies.append(layout.unpack(self._bytes, HEADER.size))
                self._due.popleft()
            del self._bytes[:end]
        return replies

    def _is_due(self, request: int) -> bool:
        return bool(self._due) and self._due[0].request == request

    def _expected(self, header: dict[str, int]) -> Layout:
        row = self._due[0] if self._due else None
        name = f"message {header['request']}"
        if row is None or row.reply is None:
            raise DisplayLost(f"{name} came, and no reply is due")
        wanted = row.request.name
        if header["request"] != row.request or header["flags"] != FLAG_REPLY:
            raise DisplayLost(f"{name} with flags {header['flags']:#x} is no reply to {wanted}")
        if header["size"] != row.reply.size:
            raise DisplayLost(f"{header['size']} bytes came for {wanted}, not {row.reply.size}")
        return row.reply


def _others(header: dict[str, int]) -> Layout:
    """The payload of a reply that the worker before this one has asked for."""
    row = next((row for row in GPU.values() if row.request == header["request"]), None)
    layout = None if row is None else row.reply
    if layout is None or header["flags"] != FLAG_REPLY or header["size"] != layout.size:
        raise DisplayLost(f"message {header['request']} came, and no reply is due")
    return layout


class Display:
    """The front-end's display, as long as its socket lives. Nothing here waits: what it does not
    take at once is sent as it does, and replies come by an `Outcome`.

    All is for the worker's thread. Raises DisplayLost once it has gone, and DisplayBusy if it is so
    far behind that no more can wait.
    """

    def __init__(self, device: DisplayDevice, fd: Fd, call: Call) -> None:
        """Not for devices: `display_connected` has it. The descriptor is the display's."""
        self.closed = False
        self.waiting = 0
        """Bytes that the front-end has not taken yet."""
        self._device = device
        self._call = call
        self._codec = GpuCodec(follows=device.recovered)
        self._socket = socket.socket(fileno=fd.take())
        self._writable = self._socket.dup()
        self._watching = False
        self._out: deque[tuple[memoryview, Sequence[Fd]]] = deque()
        self._replies: deque[tuple[Outcome[Any] | None, _Made]] = deque()
        """For each reply that is due who waits for it, if anybody still does."""
        self._held = ""
        device.watch(self._socket, self._readable)

    # What it can do.

    def get_features(self) -> Outcome[GpuFeature]:
        """What the front-end has of the protocol."""
        request = GpuRequest.GET_PROTOCOL_FEATURES
        return self._ask(request, lambda reply: GpuFeature(reply["value"] & _ALL_FEATURES))

    def set_features(self, features: GpuFeature) -> None:
        """Use these of them."""
        self._send(GpuRequest.SET_PROTOCOL_FEATURES, value=int(features))
        self._codec.features = features

    def get_info(self) -> Outcome[list[DisplayInfo]]:
        """The screens, by the number of their scanout; those that are not there are not enabled."""
        return self._ask(GpuRequest.GET_DISPLAY_INFO, _displays)

    def get_edid(self, scanout: int) -> Outcome[bytes]:
        """What the screen says of itself; needs GpuFeature.EDID."""
        return self._ask(GpuRequest.GET_EDID, _edid, scanout=scanout)

    # What it shows.

    def set_scanout(self, scanout: int, width: int, height: int) -> None:
        """A screen has so many pixels from now on; 0 by 0 switches it off."""
        self._send(GpuRequest.SCANOUT, scanout=scanout, width=width, height=height)

    def update(self, scanout: int, x: int, y: int, width: int, height: int, pixels: bytes) -> None:
        """Pixels of a part of the screen, line by line, of four bytes each: x8r8g8b8."""
        self._send(
            GpuRequest.UPDATE,
            pixels=pixels,
            scanout=scanout,
            x=x,
            y=y,
            width=width,
            height=height,
        )

    def show_dmabuf(self, scanout: int, file: Fd | None, **fields: int) -> None:
        """A screen shows a dma-buf, which stays the device's own; None: no more.

        `fields` are x, y, width and height of the part that is shown, `fd_width`, `fd_height`,
        `fd_stride` and `fd_flags` of the whole, and its format, `fourcc`; with `modifier`, which
        needs GpuFeature.DMABUF2.
        """
        with_modifier = "modifier" in fields
        request = GpuRequest.DMABUF_SCANOUT2 if with_modifier else GpuRequest.DMABUF_SCANOUT
        self._send(request, fds=() if file is None else (file.dup(),), scanout=scanout, **fields)

    def update_dmabuf(self, scanout: int, x: int, y: int, width: int, height: int) -> Outcome[None]:
        """A part of it has changed; done once the front-end has drawn that."""
        area = {"scanout": scanout, "x": x, "y": y, "width": width, "height": height}
        return self._ask(GpuRequest.DMABUF_UPDATE, lambda _reply: None, **area)

    def set_cursor(
        self, scanout: int, x: int, y: int, hot_x: int, hot_y: int, pixels: bytes
    ) -> None:
        """The cursor's place, its point, and its 64 by 64 pixels of four bytes: a8r8g8b8. Raises
        ValueError for another number of them.
        """
        size = CURSOR_SIDE * CURSOR_SIDE * PIXEL
        if len(pixels) != size:
            raise ValueError(f"CURSOR_UPDATE: {len(pixels)} bytes of pixels, not {size}")
        self._send(
            GpuRequest.CURSOR_UPDATE,
            scanout=scanout,
            x=x,
            y=y,
            hot_x=hot_x,
            hot_y=hot_y,
            image=pixels,
        )

    def move_cursor(self, scanout: int, x: int, y: int) -> None:
        """The cursor's place."""
        self._send(GpuRequest.CURSOR_POS, scanout=scanout, x=x, y=y)

    def hide_cursor(self, scanout: int, x: int, y: int) -> None:
        """There is no cursor, until it is moved or set."""
        self._send(GpuRequest.CURSOR_POS_HIDE, scanout=scanout, x=x, y=y)

    def close(self) -> None:
        """End it; what waits for a reply hears that. Idempotent."""
        self._end("the display was closed")

    def hold(self, reason: str) -> None:
        """Give up what waits for a reply, and whatever is asked until `release`: the front-end may
        be waiting for this worker. Not for devices.
        """
        self._held = reason
        waiting, self._replies = self._replies, deque((None, made) for _, made in self._replies)
        for outcome, _ in waiting:
            if outcome is not None:
                outcome.settle(ReplyGivenUp(reason), self._call)

    def release(self) -> None:
        """Replies may be waited for again."""
        self._held = ""

    # Out.

    def _ask(self, request: GpuRequest, made: _Made, **fields: Any) -> Outcome[Any]:
        outcome: Outcome[Any] = Outcome()
        if self._held:
            outcome.settle(ReplyGivenUp(self._held), self._call)
            return outcome
        data = self._encoded(request, **fields)
        self._replies.append((outcome, made))
        self._put(data, ())
        return outcome

    def _send(self, request: GpuRequest, *, fds: Sequence[Fd] = (), **fields: Any) -> None:
        try:
            data = self._encoded(request, **fields)
        except BaseException:
            for fd in fds:
                fd.close()
            raise
        self._put(data, fds)

    def _encoded(self, request: GpuRequest, **fields: Any) -> bytes:
        if self.closed:
            raise DisplayLost("the display has gone")
        if self.waiting > BACKLOG_MAX:
            raise DisplayBusy(self.waiting)
        return self._codec.encode(request, **fields)

    def _put(self, data: bytes, fds: Sequence[Fd]) -> None:
        self._out.append((memoryview(data), fds))
        self.waiting += len(data)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                data, fds = self._out[0]
                sent = self._socket.sendmsg([data], _rights(fds), _FLAGS)
                for fd in fds:
                    fd.close()
                self.waiting -= sent
                self._out[0] = data[sent:], ()
                if sent == len(data):
                    self._out.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(f"cannot send: {error.strerror}")
            return
        self._watch_room(bool(self._out))

    def _watch_room(self, wanted: bool) -> None:
        if wanted and not self._watching:
            self._device.watch(self._writable, self._flush, write=True)
        elif not wanted and self._watching:
            self._device.unwatch(self._writable)
        self._watching = wanted

    # In.

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(f"cannot receive: {error.strerror}")
            return
        if not data:
            self._end("closed by the front-end")
            return
        try:
            replies = self._codec.feed(data)
        except DisplayLost as error:
            self._end(error.reason)
            return
        for reply in replies:
            outcome, made = self._replies.popleft()
            if outcome is not None:
                outcome.settle(None, self._call, made(reply))

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self._watch_room(False)
        self._device.unwatch(self._socket)
        self._socket.close()
        self._writable.close()
        for _, fds in self._out:
            for fd in fds:
                fd.close()
        self._out.clear()
        self.waiting = 0
        replies, self._replies = self._replies, deque()
        for outcome, _ in replies:
            if outcome is not None:
                outcome.settle(DisplayLost(reason), self._call)
        self._call(self._device.display_gone, reason)


class DisplayDevice(Device):
    """A device with a display, if the front-end has one for it. In the worker of queue 0."""

    def display_connected(self, display: Display) -> None:
        """There is a display from now on, instead of any before it: the front-end has given one,
        or this worker follows another, whose display it was. It shows what it showed.
        """

    def display_gone(self, reason: str) -> None:
        """The display that there was is closed, by whomever."""


def _rights(fds: Sequence[Fd]) -> list[tuple[int, int, array.array[int]]]:
    numbers = array.array("i", [fd.fileno() for fd in fds])
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if fds else []


def _displays(reply: dict[str, Any]) -> list[DisplayInfo]:
    data = reply["displays"]
    found = (DISPLAY.unpack(data, at) for at in range(0, len(data), DISPLAY.size))
    return [
        DisplayInfo(each["x"], each["y"], each["width"], each["height"], bool(each["enabled"]))
        for each in found
    ]


def _edid(reply: dict[str, Any]) -> bytes:
    """The front-end says how long it is, and may say anything."""
    return bytes(reply["edid"][: reply["size"]])
