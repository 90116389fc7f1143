"""Numbers and layouts of the network device (virtio 1.3 section 5.1)."""

from __future__ import annotations

from enum import IntFlag

from vuproc.spec.layout import Layout

MAX_FRAME = 65550
"""Bytes of the largest frame: an IP packet of 65535 with its Ethernet header (5.1.6.3.1)."""
MTU_MIN = 68
MTU_MAX = 65535
"""Bytes that an MTU may have (5.1.4.1)."""
MAC_BYTES = 6
LINK_UP = 1
"""Bit of `status` in the configuration space (5.1.4)."""
SPEED_UNKNOWN = 0xFFFFFFFF
DUPLEX_UNKNOWN = 0xFF


class NetFeature(IntFlag):
    """Feature bits of the network device (virtio 1.3 section 5.1.3)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23


HEADER = Layout(
    "virtio_net_hdr",
    "<BBHHHHH",
    "flags",
    "gso_type",
    "hdr_len",
    "gso_size",
    "csum_start",
    "csum_offset",
    "num_buffers",
)
"""What each frame begins with, both ways, of a driver that accepts VERSION_1 (5.1.6)."""

CONFIG = Layout(
    "virtio_net_config",
    "<6sHHHIBBHI",
    "mac",
    "status",
    "max_virtqueue_pairs",
    "mtu",
    "speed",
    "duplex",
    "rss_max_key_size",
    "rss_max_indirection_table_length",
    "supported_hash_types",
)
"""Config space, 24 bytes (5.1.4)."""
