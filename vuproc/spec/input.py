"""Numbers and layouts of the input device (virtio 1.3 section 5.8)."""

from __future__ import annotations

from enum import IntEnum

from vuproc.spec.layout import Layout

UNION_BYTES = 128
"""Bytes of an answer in the configuration space: of a name, or a bit for each code (5.8.4)."""
SYN_REPORT = 0
"""Code of the event of type SYN that ends what belongs together (Linux, input-event-codes.h)."""
SYN_DROPPED = 3
"""The one that says that events were lost, likewise."""


class InputSelect(IntEnum):
    """What the driver may select to read (virtio 1.3 section 5.8.4)."""

    UNSET = 0x00
    ID_NAME = 0x01
    ID_SERIAL = 0x02
    ID_DEVIDS = 0x03
    PROP_BITS = 0x10
    EV_BITS = 0x11
    ABS_INFO = 0x12


class InputType(IntEnum):
    """Types of events: those of Linux (input-event-codes.h), as 5.8.6 has it."""

    SYN = 0x00
    KEY = 0x01
    REL = 0x02
    ABS = 0x03
    MSC = 0x04
    SW = 0x05
    LED = 0x11
    SND = 0x12
    REP = 0x14
    FF = 0x15


CONFIG_HEAD = Layout("virtio_input_config", "<BBB5x", "select", "subsel", "size")
"""What the configuration space begins with, before the answer (5.8.4)."""

CONFIG_BYTES = CONFIG_HEAD.size + UNION_BYTES

EVENT = Layout("virtio_input_event", "<HHI", "type", "code", "value")
"""One event, in either direction (5.8.6)."""

ABS_INFO = Layout("virtio_input_absinfo", "<iiiii", "min", "max", "fuzz", "flat", "res")
"""The bounds of an absolute axis (5.8.4)."""

DEVIDS = Layout("virtio_input_devids", "<HHHH", "bustype", "vendor", "product", "version")
"""Who made the device (5.8.4)."""
