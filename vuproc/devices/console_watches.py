"""What a console's port waits for: descriptors, and another turn; each once at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from vuproc.device import Device
from vuproc.fd import HasFileno


class Watches:
    """Those of one port; `unwatch` before a file is closed."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._watched: set[int] = set()
        self._soon: set[Callable[[], None]] = set()

    def watch(self, file: HasFileno, callback: Callable[[], None], *, write: bool = False) -> None:
        """As `Device.watch`; nothing happens if it is watched already."""
        number = file.fileno()
        if number not in self._watched:
            # A regular file and /dev/null are always ready, and epoll(7) will not have them.
            with suppress(PermissionError):
                self._device.watch(number, callback, write=write)
                self._watched.add(number)

    def unwatch(self, file: HasFileno | None) -> None:
        """Watch it no more; nothing happens if it is not watched, or None."""
        if file is not None and file.fileno() in self._watched:
            self._watched.discard(file.fileno())
            self._device.unwatch(file)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call it when the worker has looked at its other queues; once, however often one asks."""

        def call() -> None:
            self._soon.discard(callback)
            callback()

        if callback not in self._soon:
            self._soon.add(callback)
            self._device.call_soon(call)

    def close(self) -> None:
        """Watch none of them any more."""
        for number in self._watched:
            self._device.unwatch(number)
        self._watched.clear()
