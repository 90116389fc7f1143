"""Every message and feature bit of the protocol by one name each, as the specifications have them.

What the specifications call VHOST_USER_BACKEND_IOTLB_MSG is `BACKEND_IOTLB_MSG` here, and
VHOST_USER_PROTOCOL_F_MQ is `PROTOCOL_F_MQ`: a message, a protocol feature and a feature bit may
have the same last word.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vuproc.spec.vhost_user import BACK_END, FRONT_END, ProtocolFeature
from vuproc.spec.virtio import Feature


class Kind(Enum):
    """What a name stands for."""

    FRONT_END = "message from the front-end"
    BACK_END = "message to the front-end"
    PROTOCOL = "protocol feature"
    RING = "feature bit"


class Item(NamedTuple):
    """One message or bit; `number` is the message's, or the bit's position."""

    name: str
    kind: Kind
    number: int


_VHOST = {
    Feature.LOG_ALL: "VHOST_F_LOG_ALL",
    Feature.PROTOCOL_FEATURES: "VHOST_USER_F_PROTOCOL_FEATURES",
}


def protocol_name(bit: ProtocolFeature) -> str:
    """The name of a protocol feature."""
    return f"PROTOCOL_F_{bit.name}"


def ring_name(bit: Feature) -> str:
    """The name of a feature bit that belongs to no device type."""
    return _VHOST.get(bit, f"VIRTIO_F_{bit.name}")


def _position(bit: int) -> int:
    return int(bit).bit_length() - 1


ITEMS: dict[str, Item] = {
    item.name: item
    for item in (
        *(Item(row.name, Kind.FRONT_END, row.number) for row in FRONT_END),
        *(Item(f"BACKEND_{row.name}", Kind.BACK_END, row.number) for row in BACK_END),
        *(Item(protocol_name(bit), Kind.PROTOCOL, _position(bit)) for bit in ProtocolFeature),
        *(Item(ring_name(bit), Kind.RING, _position(bit)) for bit in Feature),
    )
}
"""All of them by name, in the order of the tables."""


def of_kind(kind: Kind) -> list[Item]:
    """Those of one kind, in the order of their numbers."""
    return sorted((i for i in ITEMS.values() if i.kind is kind), key=lambda item: item.number)
