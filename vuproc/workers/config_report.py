"""Has the master know what the driver is to read as the device's configuration space."""

from __future__ import annotations

from collections.abc import Callable

from vuproc.device import Device
from vuproc.workers.control import ConfigSays
from vuproc.workers.device_code import DeviceCode

DRIVER_BYTES = 8
"""A driver's own write is no longer (virtio 1.3, 4.1.3.1). What is longer is the whole space as
QEMU has it in mind, where all that the driver did not write may be out of date.
"""


class ConfigReport:
    """Asks the device at each time when its answer may have changed; one for each device.

    A device that takes no writes is asked only when it says so: its answer stays as it is. One that
    takes writes and never says anything else has the driver read what it wrote.
    """

    def __init__(
        self, device: Device, code: DeviceCode, send: Callable[[ConfigSays], None]
    ) -> None:
        self._device = device
        self._code = code
        self._send = send
        self._takes_writes = type(device).config_written is not Device.config_written
        self._last = self._ask() if self._takes_writes else None
        self._follows = False
        """Whether what the driver writes has its part in the answer."""

    def look(self) -> None:
        """The device was reset."""
        if self._takes_writes:
            self._tell(self._ask())

    def written(self, size: int) -> None:
        """The driver has written, in a message of `size` bytes that the device has accepted."""
        if not self._takes_writes:
            return
        content = self._ask()
        self._follows = self._follows or content != self._last
        if self._follows or size > DRIVER_BYTES:
            # The same answer counts too: the write lies over it.
            self._last = None
        self._tell(content)

    def changed(self) -> None:
        """The device says that it has changed: the driver is to be told."""
        self._last = None
        self._tell(self._ask(), changed=True)

    def repeat(self) -> None:
        """The master is to know it, whether it has changed or not."""
        self._last = None
        self._tell(self._ask(), repeated=True)

    def _tell(
        self, content: bytes | None, *, changed: bool = False, repeated: bool = False
    ) -> None:
        if content is not None and content != self._last:
            self._last = content
            self._send(ConfigSays(content, changed, repeated))

    def _ask(self) -> bytes | None:
        try:
            with self._code.in_hook():
                return bytes(self._device.config_space())
        except Exception as error:
            self._code.failed(f"{type(self._device).__name__}.config_space", error)
            return None
