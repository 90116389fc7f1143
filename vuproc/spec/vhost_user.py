"""The vhost-user protocol as data: structures, feature bits and every message of both directions.

Codec, validation, log names, the front-end used in tests and the reference page are driven by the
two tables FRONT_END and BACK_END at the end. Sources: the vhost-user specification as shipped with
QEMU 10.2 and the changes after 11.1 (message 45, protocol features 20, 21 and 23).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, IntEnum, IntFlag

from msgspec import Struct, field

from vuproc.spec.inflight import (
    INFLIGHT_PACKED_DESC,
    INFLIGHT_PACKED_HEADER,
    INFLIGHT_SPLIT_DESC,
    INFLIGHT_SPLIT_HEADER,
)
from vuproc.spec.layout import Layout
from vuproc.spec.net import NetFeature
from vuproc.spec.payload import Payload
from vuproc.spec.virtio import Feature

# ---- framing -------------------------------------------------------------------------------------

HEADER = Layout("header", "=III", "request", "flags", "size")

VERSION = 0x1
VERSION_MASK = 0x3
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8
FLAGS_KNOWN = VERSION_MASK | FLAG_REPLY | FLAG_NEED_REPLY

REPLY_FLAGS = VERSION | FLAG_REPLY
"""The flags of every reply, exactly: QEMU refuses a reply that repeats NEED_REPLY."""

PAYLOAD_MAX = 4096
"""Bytes after a header. The biggest request takes 1072 and the biggest reply 2056."""

FDS_MAX = 253
"""Most file descriptors that the kernel passes with one message (SCM_MAX_FD)."""

VRING_INDEX_MASK = 0xFF
VRING_NO_FD = 1 << 8
"""In the u64 of KICK, CALL and ERR: no file descriptor comes with the message."""

VRING_ADDR_F_LOG = 0x1
VRINGS_MAX = 256
"""Rings that can be told apart by the 8-bit index of KICK, CALL and ERR."""

MEM_SLOTS_MAX = 509
"""Memory regions of one front-end, as many as vhost in the kernel has (GET_MAX_MEM_SLOTS)."""

CONFIG_SIZE_MAX = PAYLOAD_MAX - 12
"""Bytes of config space that fit in one GET_CONFIG or SET_CONFIG."""

MMAP_WRITABLE = 0x1
"""In the flags of SHMEM_MAP: the guest may write there, too."""

STATE_FD_ERROR = 0x1
STATE_FD_NO_FD = 1 << 8
STATE_PHASE_STOPPED = 0
"""The one phase in which a device's state is moved: all of its rings are stopped."""


class StateDirection(IntEnum):
    """Which way SET_DEVICE_STATE_FD has a device's state moved."""

    SAVE = 0
    LOAD = 1


# ---- protocol features ---------------------------------------------------------------------------


class ProtocolFeature(IntFlag):
    """What GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES negotiate."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM = 1 << 22
    GET_VRING_BASE_SKIP_DRAIN = 1 << 23


XEN_GRANTED = 1 << 63
"""The bit of a guest address that says that it is a grant's number with an offset in its page."""
XEN_PAGE = 4096
XEN_DOMAINS_END = 0x7FF0
"""The first of the numbers that are no domain's (DOMID_FIRST_RESERVED)."""


class XenFlag(IntFlag):
    """How a region of a Xen domain is to be mapped; with XEN_MMAP alone."""

    FOREIGN = 1 << 0
    GRANT = 1 << 1
    NO_ADVANCE = 1 << 3
    NO_ADVANCE_8 = 1 << 8


_NOTHING = ProtocolFeature(0)

# ---- structures ----------------------------------------------------------------------------------

U64 = Layout("u64", "=Q", "value")
VRING_STATE = Layout("vring_state", "=II", "index", "num")
# The order on the wire is descriptor table, used ring, available ring.
VRING_ADDR = Layout("vring_addr", "=IIQQQQ", "index", "flags", "desc", "used", "avail", "log")
# A u64 of 0 is an empty table, too: so the second message of postcopy looks.
MEM_TABLE_HEADER = Layout("mem_table_hdr", "=II", "nregions", "padding")
MEM_REGION = Layout("mem_region", "=QQQQ", "guest_addr", "size", "user_addr", "mmap_offset")
MEM_REGION_XEN = Layout(
    "mem_region_xen",
    "=QQQQII",
    "guest_addr",
    "size",
    "user_addr",
    "mmap_offset",
    "xen_flags",
    "domid",
)
MEM_SINGLE = Layout("mem_single", "=8xQQQQ", "guest_addr", "size", "user_addr", "mmap_offset")
MEM_SINGLE_XEN = Layout(
    "mem_single_xen",
    "=8xQQQQII",
    "guest_addr",
    "size",
    "user_addr",
    "mmap_offset",
    "xen_flags",
    "domid",
)
LOG = Layout("log", "=QQ", "mmap_size", "mmap_offset")
IOTLB = Layout("iotlb", "=QQQBB6x", "iova", "size", "user_addr", "perm", "type")
CONFIG_HEADER = Layout("config_hdr", "=III", "offset", "size", "flags")
VRING_AREA = Layout("vring_area", "=QQQ", "value", "size", "offset")
INFLIGHT = Layout("inflight", "=QQHH4x", "mmap_size", "mmap_offset", "num_queues", "queue_size")
SHARED = Layout("shared", "=16s", "uuid")
XFER_STATE = Layout("xfer_state", "=II", "direction", "phase")
MMAP = Layout("mmap", "=B7xQQQQ", "shmid", "fd_offset", "shm_offset", "len", "flags")
SHMEM_CONFIG = Layout("shmem_config", "=I4x256Q", "nregions", "sizes")
CRYPTO_SESSION = Layout("crypto_session", "=Q1056sq", "op_code", "parameters", "session_id")

STRUCTURES: tuple[Layout, ...] = (
    HEADER,
    U64,
    VRING_STATE,
    VRING_ADDR,
    MEM_TABLE_HEADER,
    MEM_REGION,
    MEM_REGION_XEN,
    MEM_SINGLE,
    MEM_SINGLE_XEN,
    LOG,
    IOTLB,
    CONFIG_HEADER,
    VRING_AREA,
    INFLIGHT,
    SHARED,
    XFER_STATE,
    MMAP,
    SHMEM_CONFIG,
    CRYPTO_SESSION,
    INFLIGHT_SPLIT_HEADER,
    INFLIGHT_SPLIT_DESC,
    INFLIGHT_PACKED_HEADER,
    INFLIGHT_PACKED_DESC,
)

NONE = Payload("nothing")
VALUE = Payload("u64", (U64,))
STATE = Payload("vring_state", (VRING_STATE,))
ADDRESSES = Payload("vring_addr", (VRING_ADDR,))
# User-Mode Linux 6.1 always sends room for two regions: 72 bytes, whatever the count.
# A QEMU that knows SHARED_OBJECT acknowledges XEN_MMAP, too, to whoever offers it, and sends
# regions as ever. So the size tells.
REGIONS = Payload(
    "mem_table",
    (MEM_TABLE_HEADER,),
    item=MEM_REGION,
    other_item=MEM_REGION_XEN,
    count="nregions",
    padded=True,
)
REGION = Payload("mem_single", (MEM_SINGLE, MEM_SINGLE_XEN))
LOG_BASE = Payload("log", (LOG, U64))
TRANSLATION = Payload("iotlb", (IOTLB,))
CONFIG = Payload("config", (CONFIG_HEADER,), raw="size")
CONFIG_OR_ERROR = Payload("config", (CONFIG_HEADER,), raw="size", optional=True)
SESSION = Payload("crypto_session", (CRYPTO_SESSION,))
INFLIGHT_AREA = Payload("inflight", (INFLIGHT,))
# QEMU 10.2 sends GET_SHARED_OBJECT without its UUID.
OBJECT = Payload("shared", (SHARED,), optional=True)
TRANSFER = Payload("xfer_state", (XFER_STATE,))
SHMEM_REGIONS = Payload("shmem_config", (SHMEM_CONFIG,))
MAPPING = Payload("mmap", (MMAP,))
NOTIFIER_AREA = Payload("vring_area", (VRING_AREA,))

# ---- messages ------------------------------------------------------------------------------------


class FrontendRequest(IntEnum):
    """Messages from the VMM, on the main socket."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44
    GET_VRING_BASE_SKIP_DRAIN = 45


class BackendRequest(IntEnum):
    """Messages to the VMM, on the channel of SET_BACKEND_REQ_FD; a number space of its own."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class Reply(Enum):
    """When the receiver of a message answers, and with what."""

    ACK = "u64 0 or an error, if REPLY_ACK is negotiated and NEED_REPLY is set"
    OWN = "its own payload, always"
    OWN_IF_LOG_SHMFD = "its own payload if LOG_SHMFD is negotiated, else as ACK"


class Gate(Struct, frozen=True):
    """What must have been negotiated before a message is legal."""

    protocol: ProtocolFeature = _NOTHING
    features: int = 0
    """Device feature bits that must have been acknowledged."""
    offered: int = 0
    """Device feature bits that must have been offered, acknowledged or not."""


class MessageSpec(Struct, frozen=True):
    """One row of a message table.

    `fds` and `reply_fds` are the fewest and the most file descriptors. `error_reply` is the payload
    that says "failed" in a message with a reply of its own; None: there is no such form. `barrier`:
    it may be answered only after every worker concerned has confirmed that it applied the change.
    """

    request: FrontendRequest | BackendRequest
    payload: Payload = NONE
    fds: tuple[int, int] = (0, 0)
    reply: Reply = Reply.ACK
    reply_payload: Payload = VALUE
    reply_fds: tuple[int, int] = (0, 0)
    error_reply: bytes | None = None
    gate: Gate = field(default_factory=Gate)
    barrier: bool = False

    def replies(self, negotiated: int) -> bool:
        """Whether it has a reply of its own, with these protocol features negotiated."""
        if self.reply is Reply.OWN_IF_LOG_SHMFD:
            return bool(negotiated & ProtocolFeature.LOG_SHMFD)
        return self.reply is Reply.OWN

    @property
    def number(self) -> int:
        """The message number in its direction's number space."""
        return int(self.request)

    @property
    def name(self) -> str:
        """The name in the specification, without its prefix."""
        return self.request.name


class MessageTable:
    """Every message of one direction, by number and by name."""

    def __init__(self, direction: str, *rows: MessageSpec) -> None:
        self.direction = direction
        self._by_number = {row.number: row for row in rows}
        self._by_name = {row.name: row for row in rows}

    def get(self, number: int) -> MessageSpec | None:
        """The row of a message number, None if there is no such message."""
        return self._by_number.get(number)

    def named(self, name: str) -> MessageSpec:
        """The row of a message name; KeyError if there is no such message."""
        return self._by_name[name]

    def name_of(self, number: int) -> str:
        """A name for the log, whatever the number."""
        row = self._by_number.get(number)
        return row.name if row else f"message {number}"

    def __iter__(self) -> Iterator[MessageSpec]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)


_F, _B, _P = FrontendRequest, BackendRequest, ProtocolFeature
_OWN = Reply.OWN
_NEGOTIATION = Gate(offered=Feature.PROTOCOL_FEATURES)
_FAILED = U64.pack(value=1)


def _gate(protocol: ProtocolFeature) -> Gate:
    return Gate(protocol=protocol)


_SLOTS = _gate(_P.CONFIGURE_MEM_SLOTS)
_POSTCOPY = _gate(_P.PAGEFAULT)
_STATE_GATE = _gate(_P.DEVICE_STATE)
_SKIP_DRAIN = _gate(_P.GET_VRING_BASE_SKIP_DRAIN | _P.GET_VRING_BASE_INFLIGHT | _P.INFLIGHT_SHMFD)
_IOMMU = Gate(features=Feature.ACCESS_PLATFORM)

FRONT_END = MessageTable(
    "front-end to back-end",
    MessageSpec(_F.GET_FEATURES, reply=_OWN),
    MessageSpec(_F.SET_FEATURES, VALUE, barrier=True),
    MessageSpec(_F.SET_OWNER),
    MessageSpec(_F.RESET_OWNER, barrier=True),
    # In postcopy mode it has a reply of its own, the same payload with our addresses, and comes
    # once more with a u64 of 0 and no descriptors.
    MessageSpec(_F.SET_MEM_TABLE, REGIONS, fds=(0, FDS_MAX), barrier=True),
    # The 16-byte echo is the one reply which every front-end accepts.
    MessageSpec(
        _F.SET_LOG_BASE,
        LOG_BASE,
        fds=(0, 1),
        reply=Reply.OWN_IF_LOG_SHMFD,
        reply_payload=Payload("log", (LOG,)),
        barrier=True,
    ),
    MessageSpec(_F.SET_LOG_FD, fds=(1, 1)),
    MessageSpec(_F.SET_VRING_NUM, STATE),
    MessageSpec(_F.SET_VRING_ADDR, ADDRESSES, barrier=True),
    MessageSpec(_F.SET_VRING_BASE, STATE),
    MessageSpec(_F.GET_VRING_BASE, STATE, reply=_OWN, reply_payload=STATE, barrier=True),
    MessageSpec(_F.SET_VRING_KICK, VALUE, fds=(0, 1), barrier=True),
    MessageSpec(_F.SET_VRING_CALL, VALUE, fds=(0, 1), barrier=True),
    MessageSpec(_F.SET_VRING_ERR, VALUE, fds=(0, 1)),
    MessageSpec(_F.GET_PROTOCOL_FEATURES, reply=_OWN, gate=_NEGOTIATION),
    MessageSpec(_F.SET_PROTOCOL_FEATURES, VALUE, gate=_NEGOTIATION),
    MessageSpec(_F.GET_QUEUE_NUM, reply=_OWN, gate=_gate(_P.MQ)),
    # QEMU's network front-end enables rings before SET_FEATURES: offered is enough.
    MessageSpec(_F.SET_VRING_ENABLE, STATE, gate=_NEGOTIATION, barrier=True),
    MessageSpec(_F.SEND_RARP, VALUE, gate=_gate(_P.RARP)),
    # QEMU sends it before SET_FEATURES: offered is enough.
    MessageSpec(_F.NET_SET_MTU, VALUE, gate=Gate(protocol=_P.MTU, offered=NetFeature.MTU)),
    MessageSpec(_F.SET_BACKEND_REQ_FD, fds=(1, 1), gate=_gate(_P.BACKEND_REQ)),
    MessageSpec(
        _F.IOTLB_MSG, TRANSLATION, reply=_OWN, error_reply=_FAILED, gate=_IOMMU, barrier=True
    ),
    MessageSpec(_F.SET_VRING_ENDIAN, STATE, gate=_gate(_P.CROSS_ENDIAN)),
    MessageSpec(
        _F.GET_CONFIG,
        CONFIG,
        reply=_OWN,
        reply_payload=CONFIG_OR_ERROR,
        error_reply=b"",
        gate=_gate(_P.CONFIG),
    ),
    MessageSpec(_F.SET_CONFIG, CONFIG, gate=_gate(_P.CONFIG)),
    MessageSpec(
        _F.CREATE_CRYPTO_SESSION,
        SESSION,
        reply=_OWN,
        reply_payload=SESSION,
        error_reply=CRYPTO_SESSION.pack(session_id=-1),
        gate=_gate(_P.CRYPTO_SESSION),
    ),
    MessageSpec(_F.CLOSE_CRYPTO_SESSION, VALUE, gate=_gate(_P.CRYPTO_SESSION)),
    MessageSpec(
        _F.POSTCOPY_ADVISE, reply=_OWN, reply_payload=NONE, reply_fds=(1, 1), gate=_POSTCOPY
    ),
    MessageSpec(_F.POSTCOPY_LISTEN, gate=_POSTCOPY, barrier=True),
    MessageSpec(_F.POSTCOPY_END, reply=_OWN, error_reply=_FAILED, gate=_POSTCOPY, barrier=True),
    # A reply of size 0 without a file descriptor means that there is no region.
    MessageSpec(
        _F.GET_INFLIGHT_FD,
        INFLIGHT_AREA,
        reply=_OWN,
        reply_payload=INFLIGHT_AREA,
        reply_fds=(0, 1),
        error_reply=INFLIGHT.pack(),
        gate=_gate(_P.INFLIGHT_SHMFD),
    ),
    MessageSpec(
        _F.SET_INFLIGHT_FD, INFLIGHT_AREA, fds=(1, 1), gate=_gate(_P.INFLIGHT_SHMFD), barrier=True
    ),
    MessageSpec(_F.GPU_SET_SOCKET, fds=(1, 1)),
    MessageSpec(_F.RESET_DEVICE, gate=_gate(_P.RESET_DEVICE), barrier=True),
    MessageSpec(_F.VRING_KICK, STATE, gate=_gate(_P.INBAND_NOTIFICATIONS), barrier=True),
    MessageSpec(_F.GET_MAX_MEM_SLOTS, reply=_OWN, gate=_SLOTS),
    MessageSpec(_F.ADD_MEM_REG, REGION, fds=(1, 1), gate=_SLOTS, barrier=True),
    # Older QEMU and rust-vmm attach a file descriptor, which is not needed.
    MessageSpec(_F.REM_MEM_REG, REGION, fds=(0, 1), gate=_SLOTS, barrier=True),
    MessageSpec(_F.SET_STATUS, VALUE, gate=_gate(_P.STATUS)),
    MessageSpec(_F.GET_STATUS, reply=_OWN, gate=_gate(_P.STATUS)),
    MessageSpec(
        _F.GET_SHARED_OBJECT,
        OBJECT,
        reply=_OWN,
        reply_payload=NONE,
        reply_fds=(0, 1),
        error_reply=b"",
        gate=_gate(_P.SHARED_OBJECT),
    ),
    MessageSpec(
        _F.SET_DEVICE_STATE_FD,
        TRANSFER,
        fds=(1, 1),
        reply=_OWN,
        reply_fds=(0, 1),
        error_reply=U64.pack(value=STATE_FD_NO_FD | STATE_FD_ERROR),
        gate=_STATE_GATE,
    ),
    MessageSpec(_F.CHECK_DEVICE_STATE, reply=_OWN, error_reply=_FAILED, gate=_STATE_GATE),
    MessageSpec(_F.GET_SHMEM_CONFIG, reply=_OWN, reply_payload=SHMEM_REGIONS, gate=_gate(_P.SHMEM)),
    MessageSpec(
        _F.GET_VRING_BASE_SKIP_DRAIN,
        STATE,
        reply=_OWN,
        reply_payload=STATE,
        gate=_SKIP_DRAIN,
        barrier=True,
    ),
)
"""Messages 1 to 45: what the VMM asks of us."""


def _channel(more: ProtocolFeature = _NOTHING, features: int = 0) -> Gate:
    return Gate(protocol=_P.BACKEND_REQ | more, features=features)


_OBJECTS = _channel(_P.SHARED_OBJECT)

BACK_END = MessageTable(
    "back-end to front-end",
    MessageSpec(_B.IOTLB_MSG, TRANSLATION, gate=_channel(features=Feature.ACCESS_PLATFORM)),
    MessageSpec(_B.CONFIG_CHANGE_MSG, gate=_channel(_P.CONFIG)),
    MessageSpec(
        _B.VRING_HOST_NOTIFIER_MSG, NOTIFIER_AREA, fds=(0, 1), gate=_channel(_P.HOST_NOTIFIER)
    ),
    MessageSpec(_B.VRING_CALL, STATE, gate=_channel(_P.INBAND_NOTIFICATIONS)),
    MessageSpec(_B.VRING_ERR, STATE, gate=_channel(_P.INBAND_NOTIFICATIONS)),
    MessageSpec(_B.SHARED_OBJECT_ADD, Payload("shared", (SHARED,)), gate=_OBJECTS),
    MessageSpec(_B.SHARED_OBJECT_REMOVE, Payload("shared", (SHARED,)), gate=_OBJECTS),
    # 0 comes with a file descriptor, anything else without one.
    MessageSpec(
        _B.SHARED_OBJECT_LOOKUP,
        Payload("shared", (SHARED,)),
        reply=_OWN,
        reply_fds=(0, 1),
        error_reply=_FAILED,
        gate=_OBJECTS,
    ),
    MessageSpec(_B.SHMEM_MAP, MAPPING, fds=(1, 1), gate=_channel(_P.SHMEM | _P.BACKEND_SEND_FD)),
    MessageSpec(_B.SHMEM_UNMAP, MAPPING, gate=_channel(_P.SHMEM)),
)
"""What we may ask of the VMM, on the back-end channel."""
