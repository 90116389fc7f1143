"""Numbers and layouts of the socket device (virtio 1.3 section 5.10)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout

RX, TX, EVENT = 0, 1, 2
"""The virtqueues (5.10.2)."""
HOST_CID = 2
"""The well-known CID of the host (5.10.4)."""
CID_MIN = 3
CID_MAX = 0xFFFFFFFE
"""CIDs that a guest may have: those below and 0xffffffff are reserved, and the upper 32 bits are
zero (5.10.4).
"""
PORT_MAX = 0xFFFFFFFF


class VsockFeature(IntFlag):
    """Feature bits of the socket device (5.10.3)."""

    STREAM = 1 << 0
    SEQPACKET = 1 << 1
    NO_IMPLIED_STREAM = 1 << 2


class VsockType(IntEnum):
    """Socket types (5.10.6)."""

    STREAM = 1
    SEQPACKET = 2


class Op(IntEnum):
    """What a packet is for (5.10.6)."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(IntEnum):
    """Flags of SHUTDOWN: what its sender will not do any more (5.10.6.6).

    No IntFlag, of which every `&` makes a member anew: connections look at them for each packet.
    """

    RECEIVE = 1 << 0
    SEND = 1 << 1


BOTH = Shutdown.RECEIVE | Shutdown.SEND


class SeqFlag(IntFlag):
    """Flags of RW of a SEQPACKET socket (5.10.6.6.1)."""

    EOM = 1 << 0
    EOR = 1 << 1


HEADER = Layout(
    "virtio_vsock_hdr",
    "<QQIIIHHIII",
    "src_cid",
    "dst_cid",
    "src_port",
    "dst_port",
    "len",
    "type",
    "op",
    "flags",
    "buf_alloc",
    "fwd_cnt",
)
"""What each packet begins with, 44 bytes (5.10.6)."""

CONFIG = Layout("virtio_vsock_config", "<Q", "guest_cid")
"""Config space (5.10.4)."""

EVENT_MESSAGE = Layout("virtio_vsock_event", "<I", "id")
"""What a buffer of the queue for events is filled with (5.10.6.7)."""
TRANSPORT_RESET = 0
"""The event after a migration: connections are lost, listening sockets are not, and the CID is to
be read again.
"""
