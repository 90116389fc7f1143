"""What device and driver tell each other about a console's ports (virtio 1.3 section 5.3.6.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vuproc.device import Device
from vuproc.devices.console_port import Port
from vuproc.devices.console_watches import Watches
from vuproc.spec.console import CONTROL, CONTROL_RECEIVE, RESIZE, ConsoleEvent

if TYPE_CHECKING:
    from vuproc.shm.request import Request

ASKED, ADDED, NAMED, IS_CONSOLE, IS_OPEN = 1, 2, 4, 8, 16
"""Bits of what a driver has been told of a port; the first one: it is ready to be told."""


MOST_LOOKS = 64
"""Buffers that are looked at for one with room, before the worker looks at its other queues."""


class Control:
    """Tells the driver what it does not know yet of the ports of `device`, and hears what it says.

    What was told is noted after the driver has it, so the worker that follows one that is killed
    may say it again: it is how things are, and a driver takes it twice. size: columns and rows of
    consoles, or None; rows_first: as they are told to older drivers.
    """

    def __init__(
        self,
        device: Device,
        ports: Sequence[Port],
        size: tuple[int, int] | None,
        *,
        rows_first: bool,
    ) -> None:
        self._device = device
        self._watches = Watches(device)
        self._ports = ports
        self._size = size
        self._rows_first = rows_first

    def begin(self, *, multiport: bool) -> None:
        """The driver has said whether it knows of several ports."""
        for port in self._ports:
            port.listens = bool(port.state.open) if multiport else port.number == 0

    def heard(self, request: Request) -> None:
        """The driver says something."""
        data = request.read(min(request.readable, CONTROL.size))
        if len(data) < CONTROL.size:
            return
        said = CONTROL.unpack(data)
        event, value = said["event"], said["value"]
        if event == ConsoleEvent.DEVICE_READY:
            self._driver_ready(ok=value == 1)
        elif said["id"] < len(self._ports):
            port = self._ports[said["id"]]
            if event == ConsoleEvent.PORT_READY:
                port.state.ready = int(value == 1)
                if value != 1:
                    self._device.log.warning("port %d: its driver cannot have it", port.number)
            elif event == ConsoleEvent.PORT_OPEN:
                port.state.open = int(value != 0)
                port.listens = value != 0
                port.receive()
        self.tell()

    def _driver_ready(self, *, ok: bool) -> None:
        if not ok:
            self._device.log.warning("the driver cannot have the device")
        for port in self._ports:
            state = port.state
            state.ready = state.open = state.told_size = 0
            state.told = ASKED if ok else 0
            port.listens = False

    def tell(self) -> None:
        """Tell what is to be told, as far as the driver has buffers for it."""
        for port in self._ports:
            for event, value, more, told in self._news(port):
                message = CONTROL.pack(id=port.number, event=event, value=value) + more
                if not self._send(message):
                    return
                port.state.told = told
                if event == ConsoleEvent.RESIZE:
                    port.state.told_size = self._size_word

    def _news(self, port: Port) -> Iterator[tuple[ConsoleEvent, int, bytes, int]]:
        """What a driver does not know of a port: event, value, what follows, what it knows then."""
        state = port.state
        if not state.told & ASKED:
            return
        if not state.told & ADDED:
            yield ConsoleEvent.DEVICE_ADD, 0, b"", state.told | ADDED
        if not state.ready:
            return
        if port.console and not state.told & IS_CONSOLE:
            yield ConsoleEvent.CONSOLE_PORT, 1, b"", state.told | IS_CONSOLE
        if port.name and not state.told & NAMED:
            yield ConsoleEvent.PORT_NAME, 0, port.name.encode(), state.told | NAMED
        if port.console and self._size_word != state.told_size:
            yield ConsoleEvent.RESIZE, 0, self._size_message(), state.told
        if port.connected != bool(state.told & IS_OPEN):
            yield ConsoleEvent.PORT_OPEN, int(port.connected), b"", state.told ^ IS_OPEN

    def _send(self, message: bytes) -> bool:
        """False: there is no buffer, until one is `available`."""
        for _ in range(MOST_LOOKS):
            buffer = self._device.take(CONTROL_RECEIVE)
            if buffer is None:
                return False
            if buffer.writable >= len(message):
                buffer.write(message)
                buffer.finish()
                self._device.publish(CONTROL_RECEIVE)
                return True
            buffer.finish(0)
        self._watches.call_soon(self.tell)
        return False

    @property
    def _size_word(self) -> int:
        columns, rows = self._size or (0, 0)
        return columns << 16 | rows

    def _size_message(self) -> bytes:
        columns, rows = self._size or (0, 0)
        if self._rows_first:
            columns, rows = rows, columns
        return RESIZE.pack(cols=columns, rows=rows)
