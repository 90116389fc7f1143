"""Numbers of SCSI: primary commands (SPC-4), those of disks (SBC-3) and of CDs (MMC-5)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

GOOD, CHECK_CONDITION = 0x00, 0x02
"""Status of a command (SAM-5)."""
SENSE_BYTES = 18
"""Bytes of sense data in the fixed format, as it is made here."""
REPORT_LUNS_UNIT = 0xC101
"""The well-known logical unit that lists the others (SAM-5)."""


class Op(IntEnum):
    """Operation codes, the first byte of a command."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    VERIFY_10 = 0x2F
    SYNCHRONIZE_CACHE_10 = 0x35
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    READ_TOC = 0x43
    GET_CONFIGURATION = 0x46
    GET_EVENT_STATUS = 0x4A
    MODE_SELECT_10 = 0x55
    MODE_SENSE_10 = 0x5A
    READ_16 = 0x88
    WRITE_16 = 0x8A
    VERIFY_16 = 0x8F
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    READ_12 = 0xA8
    WRITE_12 = 0xAA


READ_CAPACITY_16 = 0x10
"""Service action of SERVICE_ACTION_IN_16."""


class Key(IntEnum):
    """Sense keys."""

    NO_SENSE = 0x0
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7


class Sense(IntEnum):
    """Additional sense code and its qualifier, as one number."""

    NONE = 0x0000
    WRITE_ERROR = 0x0C00
    READ_ERROR = 0x1100
    PARAMETER_LIST_LENGTH = 0x1A00
    INVALID_OPERATION_CODE = 0x2000
    LBA_OUT_OF_RANGE = 0x2100
    INVALID_FIELD_IN_CDB = 0x2400
    UNIT_NOT_SUPPORTED = 0x2500
    INVALID_FIELD_IN_PARAMETERS = 0x2600
    WRITE_PROTECTED = 0x2700
    NO_SPACE = 0x2707
    RESET_OCCURRED = 0x2903
    CAPACITY_CHANGED = 0x2A09
    SAVING_NOT_SUPPORTED = 0x3900
    NO_MEDIUM = 0x3A00
    INTERNAL_FAILURE = 0x4400
    REMOVAL_PREVENTED = 0x5302


class Vpd(IntEnum):
    """Pages of vital product data."""

    SUPPORTED = 0x00
    SERIAL = 0x80
    IDENTIFICATION = 0x83
    BLOCK_LIMITS = 0xB0
    BLOCK_CHARACTERISTICS = 0xB1
    PROVISIONING = 0xB2


class Page(IntEnum):
    """Mode pages."""

    ERROR_RECOVERY = 0x01
    CACHING = 0x08
    CONTROL = 0x0A
    CAPABILITIES = 0x2A
    ALL = 0x3F


class PageControl(IntEnum):
    """Which values of a mode page are asked for."""

    CURRENT = 0
    CHANGEABLE = 1
    DEFAULT = 2
    SAVED = 3


class DeviceKind(IntEnum):
    """Peripheral device types."""

    DISK = 0x00
    CD = 0x05
    WELL_KNOWN = 0x1E
    ABSENT = 0x7F
    """With the qualifier that says that there is no such logical unit."""


class CdbFlag(IntFlag):
    """Bits of the second byte of a command, of different ones."""

    EVPD = 0x01
    ANCHOR = 0x10
    FUA = 0x08
    UNMAP = 0x08
    NDOB = 0x01
    BYTE_CHECK = 0x06
    PROTECT = 0xE0
    """RDPROTECT, WRPROTECT, VRPROTECT."""
    NO_BLOCK_DESCRIPTORS = 0x08
    PAGE_FORMAT = 0x10
    SAVE_PAGES = 0x01
    MSF = 0x02
    POLLED = 0x01


WCE = 0x04
"""Bit of the caching page: there is a write cache."""
