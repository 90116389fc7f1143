"""Numbers and layouts of the network device (virtio 1.3 section 5.1)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout

MAX_FRAME = 65550
"""Bytes of the largest frame: an IP packet of 65535 with its Ethernet header (5.1.6.3.1)."""
MTU_MIN = 68
MTU_MAX = 65535
"""Bytes that an MTU may have (5.1.4.1)."""
MAC_BYTES = 6
LINK_UP = 1
ANNOUNCE = 2
"""Bits of `status` in the configuration space (5.1.4)."""
VLANS = 4096
"""Numbers that a VLAN may have (802.1Q, 12 bits)."""
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
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


GUEST_OFFLOADS = (
    NetFeature.GUEST_CSUM
    | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6
    | NetFeature.GUEST_ECN
    | NetFeature.GUEST_UFO
    | NetFeature.GUEST_USO4
    | NetFeature.GUEST_USO6
)
"""What a driver may switch off and on again (5.1.6.5.6)."""

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


class Control(IntEnum):
    """Commands of the control queue, as class << 8 | command (5.1.6.5)."""

    RX_PROMISC = 0x000
    RX_ALLMULTI = 0x001
    RX_ALLUNI = 0x002
    RX_NOMULTI = 0x003
    RX_NOUNI = 0x004
    RX_NOBCAST = 0x005
    MAC_TABLE_SET = 0x100
    MAC_ADDR_SET = 0x101
    VLAN_ADD = 0x200
    VLAN_DEL = 0x201
    ANNOUNCE_ACK = 0x300
    MQ_PAIRS_SET = 0x400
    OFFLOADS_SET = 0x500


CONTROL_OK, CONTROL_ERR = 0, 1
"""What the device writes of a command (5.1.6.5)."""
