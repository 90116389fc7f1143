"""Numbers and layouts of the CAN device (virtio 1.4 section 5.20)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout

STANDARD_ID_MAX = 0x7FF
EXTENDED_ID_MAX = 0x1FFF_FFFF
"""Identifiers of 11 and of 29 bits."""
CLASSIC_MAX = 8
FD_MAX = 64
"""Bytes of data of one frame."""


class CanFeature(IntFlag):
    """Feature bits of the CAN device."""

    CAN_CLASSIC = 1 << 0
    CAN_FD = 1 << 1
    RTR_FRAMES = 1 << 2
    LATE_TX_ACK = 1 << 3


class CanMessage(IntEnum):
    """Message types of the three queues."""

    TX = 0x0001
    RX = 0x0101
    SET_CTRL_MODE_START = 0x0201
    SET_CTRL_MODE_STOP = 0x0202


class CanResult(IntEnum):
    """How a transmission, or a change of the controller's mode, ended."""

    OK = 0
    NOT_OK = 1


class CanFlag(IntFlag):
    """Bits of `flags` of a frame."""

    RTR = 0x2000
    FD = 0x4000
    EXTENDED = 0x8000


S_CTRL_BUSOFF = 1 << 0
"""Bit of `status` in the configuration space: the controller has stopped by itself."""

_FRAME = (
    "<HHBxHII",
    "msg_type",
    "length",
    "reserved_classic_dlc",
    "reserved_xl_priority",
    "flags",
    "can_id",
)
TX_OUT = Layout("virtio_can_tx_out", *_FRAME)
"""What a frame of the driver's begins with, before `length` bytes of data."""
RX = Layout("virtio_can_rx", *_FRAME)
"""What a frame for the driver begins with."""
CONTROL_OUT = Layout("virtio_can_control_out", "<H", "msg_type")
CONFIG = Layout("virtio_can_config", "<H", "status")
"""Config space, 2 bytes."""
