"""What vuproc offers and when, what it refuses and why. Tests compare it with the code."""

from __future__ import annotations

from collections.abc import Mapping

from tests.compatibility.names import protocol_name, ring_name
from vuproc.spec.vhost_user import BACK_END, FRONT_END, Gate, ProtocolFeature
from vuproc.spec.virtio import Feature

ALWAYS = "always"

OFFERED: Mapping[str, str] = {
    "PROTOCOL_F_MQ": ALWAYS,
    "PROTOCOL_F_LOG_SHMFD": ALWAYS,
    "PROTOCOL_F_RARP": "net devices with `announce`",
    "PROTOCOL_F_REPLY_ACK": ALWAYS,
    "PROTOCOL_F_MTU": "net devices with `mtu_changed`",
    "PROTOCOL_F_BACKEND_REQ": ALWAYS,
    "PROTOCOL_F_PAGEFAULT": "`postcopy: true`",
    "PROTOCOL_F_CONFIG": "with a configuration space",
    "PROTOCOL_F_INFLIGHT_SHMFD": ALWAYS,
    "PROTOCOL_F_RESET_DEVICE": ALWAYS,
    "PROTOCOL_F_INBAND_NOTIFICATIONS": "`inband_notifications: true`",
    "PROTOCOL_F_CONFIGURE_MEM_SLOTS": "unless `postcopy: true`",
    "PROTOCOL_F_XEN_MMAP": "`xen: on`, or `auto` where there are its devices",
    "PROTOCOL_F_STATUS": ALWAYS,
    "PROTOCOL_F_DEVICE_STATE": "with `save_state` and `load_state`",
    "PROTOCOL_F_GET_VRING_BASE_INFLIGHT": "blk, and with `leaves_in_flight`",
    "PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN": "blk, and with `leaves_in_flight`",
    "PROTOCOL_F_GPA_ADDRESSES": ALWAYS,
    "PROTOCOL_F_SHARED_OBJECT": "a `SharingDevice`",
    "PROTOCOL_F_BACKEND_SEND_FD": "with shared memory",
    "PROTOCOL_F_SHMEM": "a `MappingDevice` with regions",
    "VHOST_F_LOG_ALL": ALWAYS,
    "VIRTIO_F_INDIRECT_DESC": ALWAYS,
    "VIRTIO_F_EVENT_IDX": ALWAYS,
    "VHOST_USER_F_PROTOCOL_FEATURES": ALWAYS,
    "VIRTIO_F_VERSION_1": ALWAYS,
    "VIRTIO_F_ACCESS_PLATFORM": "`iommu: true`",
    "VIRTIO_F_RING_PACKED": "unless `packed: false`",
    "VIRTIO_F_IN_ORDER": "net, blk, and if `features` have it",
    "GPU_SET_SOCKET": "a `DisplayDevice`",
}
"""Bits, and when a device offers them; and a message that no bit stands for."""

REFUSED: Mapping[str, str] = {
    "PROTOCOL_F_CROSS_ENDIAN": "only guests of legacy virtio have another byte order than the"
    " host's; every ring here is one of virtio 1.0 or later",
    "PROTOCOL_F_CRYPTO_SESSION": "there is no crypto device yet",
    "PROTOCOL_F_HOST_NOTIFIER": "there is no doorbell in hardware to give to the guest",
    "VIRTIO_F_NOTIFY_ON_EMPTY": "for legacy drivers alone",
    "VIRTIO_F_ANY_LAYOUT": "for legacy drivers alone; every layout of a chain is taken",
    "VIRTIO_F_ORDER_PLATFORM": "for devices that are hardware",
    "VIRTIO_F_SR_IOV": "for PCI devices with virtual functions: it is the VMM's",
    "VIRTIO_F_NOTIFICATION_DATA": "a kick says nothing but that there is something",
    "VIRTIO_F_RING_RESET": "a ring alone is not reset; the whole device is",
}
"""Bits that are never offered, and why. A message that needs one is refused for that."""

SENT = frozenset(
    {
        "BACKEND_IOTLB_MSG",
        "BACKEND_CONFIG_CHANGE_MSG",
        "BACKEND_VRING_CALL",
        "BACKEND_VRING_ERR",
        "BACKEND_SHARED_OBJECT_ADD",
        "BACKEND_SHARED_OBJECT_REMOVE",
        "BACKEND_SHARED_OBJECT_LOOKUP",
        "BACKEND_SHMEM_MAP",
        "BACKEND_SHMEM_UNMAP",
    }
)
"""What vuproc may send to the front-end."""


def needs(gate: Gate) -> list[str]:
    """The bits that have to be negotiated, or offered, before a message."""
    protocol = [protocol_name(bit) for bit in ProtocolFeature if gate.protocol & bit]
    ring = [ring_name(bit) for bit in Feature if (gate.features | gate.offered) & bit]
    return protocol + ring


_GATES = {
    **{row.name: needs(row.gate) for row in FRONT_END},
    **{f"BACKEND_{row.name}": needs(row.gate) for row in BACK_END},
}


def reason(name: str) -> str:
    """Why a message or bit is refused; "" if it is not."""
    if name in REFUSED:
        return REFUSED[name]
    missing = [bit for bit in _GATES.get(name, ()) if bit in REFUSED]
    return f"{' and '.join(f'`{bit}`' for bit in missing)} not offered" if missing else ""


def when(name: str) -> str:
    """When a bit is offered, or what a message needs; "" for what is refused."""
    if reason(name):
        return ""
    if name in OFFERED:
        return OFFERED[name]
    return ", ".join(f"`{bit}`" for bit in _GATES[name]) or ALWAYS
