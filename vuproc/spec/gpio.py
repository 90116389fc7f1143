"""Numbers and layouts of the GPIO device (virtio 1.3 section 5.18)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout


class GpioFeature(IntFlag):
    """Feature bits (virtio 1.3 section 5.18.3)."""

    IRQ = 1 << 0


class GpioMessage(IntEnum):
    """What a request asks for (5.18.6)."""

    GET_LINE_NAMES = 1
    GET_DIRECTION = 2
    SET_DIRECTION = 3
    GET_VALUE = 4
    SET_VALUE = 5
    SET_IRQ_TYPE = 6


class GpioStatus(IntEnum):
    """The first byte of an answer (5.18.6)."""

    OK = 0
    ERR = 1


class Direction(IntEnum):
    """Of a line (5.18.6)."""

    NONE = 0
    OUT = 1
    IN = 2


class IrqType(IntEnum):
    """When a line interrupts (5.18.6)."""

    NONE = 0
    EDGE_RISING = 1
    EDGE_FALLING = 2
    EDGE_BOTH = 3
    LEVEL_HIGH = 4
    LEVEL_LOW = 8


class IrqStatus(IntEnum):
    """The answer on the event queue (5.18.7)."""

    INVALID = 0
    VALID = 1


CONFIG = Layout("virtio_gpio_config", "<H2xI", "ngpio", "gpio_names_size")
"""Config space, 8 bytes (5.18.4)."""

REQUEST = Layout("virtio_gpio_request", "<HHI", "type", "gpio", "value")
"""One message of the driver's (5.18.6)."""

RESPONSE = Layout("virtio_gpio_response", "<BB", "status", "value")
"""Its answer, but for that of GET_LINE_NAMES: a status, and the names (5.18.6)."""

IRQ_REQUEST = Layout("virtio_gpio_irq_request", "<H", "gpio")
"""A buffer on the event queue: the line whose interrupt is unmasked (5.18.7)."""
