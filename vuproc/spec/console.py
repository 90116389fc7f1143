"""Numbers and layouts of the console device (virtio 1.3 section 5.3)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout

RECEIVE, TRANSMIT = 0, 1
"""The queues of port 0 (5.3.2)."""
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
"""Where device and driver tell each other of ports, if there may be several."""


class ConsoleFeature(IntFlag):
    """Feature bits of the console device (virtio 1.3 section 5.3.3)."""

    SIZE = 1 << 0
    MULTIPORT = 1 << 1
    EMERG_WRITE = 1 << 2


class ConsoleEvent(IntEnum):
    """What a control message says (virtio 1.3 section 5.3.6.2)."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


CONFIG = Layout("virtio_console_config", "<HHII", "cols", "rows", "max_nr_ports", "emerg_wr")
"""Config space, 12 bytes (5.3.4)."""

CONTROL = Layout("virtio_console_control", "<IHH", "id", "event", "value")
"""What a control message begins with; a name or a size follows (5.3.6.2)."""

RESIZE = Layout("virtio_console_resize", "<HH", "cols", "rows")
"""What follows RESIZE (5.3.6.2)."""


def receive_queue(port: int) -> int:
    """The queue on which the driver receives what comes to `port`; the next one transmits."""
    return RECEIVE if port == 0 else 2 * port + 2
