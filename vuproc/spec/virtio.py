"""Numbers of the virtio specification that every device type shares (virtio 1.3)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout


class DeviceId(IntEnum):
    """Device types (virtio 1.3 section 5)."""

    NET = 1
    BLK = 2
    CONSOLE = 3
    RNG = 4
    BALLOON = 5
    IOMEM = 6
    RPMSG = 7
    SCSI = 8
    NINEP = 9
    MAC80211_WLAN = 10
    RPROC_SERIAL = 11
    CAIF = 12
    GPU = 16
    RTC = 17
    INPUT = 18
    VSOCK = 19
    CRYPTO = 20
    SIGNAL_DIST = 21
    PSTORE = 22
    IOMMU = 23
    MEM = 24
    SOUND = 25
    FS = 26
    PMEM = 27
    RPMB = 28
    MAC80211_HWSIM = 29
    VIDEO_ENCODER = 30
    VIDEO_DECODER = 31
    SCMI = 32
    NITRO_SEC_MOD = 33
    I2C = 34
    WATCHDOG = 35
    CAN = 36
    DMABUF = 37
    PARAM_SERV = 38
    AUDIO_POLICY = 39
    BT = 40
    GPIO = 41
    SPI = 45


class Feature(IntFlag):
    """Feature bits that belong to no device type (virtio 1.3 section 6; 26 and 30 are vhost's)."""

    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    RING_RESET = 1 << 40


class Status(IntFlag):
    """Device status bits (virtio 1.3 section 2.1); 0 asks for a reset."""

    ACKNOWLEDGE = 0x01
    DRIVER = 0x02
    DRIVER_OK = 0x04
    FEATURES_OK = 0x08
    NEEDS_RESET = 0x40
    FAILED = 0x80


STATUS_MAX = 0xFF

QUEUE_SIZE_MAX = 32768
"""Largest number of descriptors in a ring (virtio 1.3 section 2.7)."""

# Split ring (virtio 1.3 section 2.7): the areas in bytes are DESC_SIZE * n,
# AVAIL_HEADER + 2 * n + EVENT_WORD and USED_HEADER + 8 * n + EVENT_WORD.

DESC_F_NEXT = 0x1
DESC_F_WRITE = 0x2
DESC_F_INDIRECT = 0x4
AVAIL_F_NO_INTERRUPT = 0x1
USED_F_NO_NOTIFY = 0x1

DESC_SIZE = 16
AVAIL_HEADER = 4
AVAIL_ENTRY = 2
USED_HEADER = 4
USED_ENTRY = 8
EVENT_WORD = 2

DESC_ALIGN = 16
AVAIL_ALIGN = 2
USED_ALIGN = 4

CHAIN_BYTES_MAX = 1 << 32
"""A chain of descriptors holds at most 2^32 bytes (virtio 1.3 section 2.7.5)."""

# Packed ring (virtio 1.3 section 2.8).

PACKED_DESC_F_AVAIL = 1 << 7
PACKED_DESC_F_USED = 1 << 15
PACKED_EVENT_ENABLE = 0
PACKED_EVENT_DISABLE = 1
PACKED_EVENT_DESC = 2
PACKED_EVENT_ALIGN = 4

SPLIT_DESC = Layout("split_desc", "<QIHH", "addr", "len", "flags", "next")
PACKED_DESC = Layout("packed_desc", "<QIHH", "addr", "len", "id", "flags")
USED_ELEM = Layout("used_elem", "<II", "id", "len")
PACKED_EVENT = Layout("packed_event", "<HH", "off_wrap", "flags")
