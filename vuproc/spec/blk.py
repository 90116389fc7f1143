"""Numbers and layouts of the block device (virtio 1.3 section 5.2)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout

SECTOR_SIZE = 512
"""The unit of capacity and of every `sector` field, whatever the block size (bytes)."""

ID_BYTES = 20
"""Length of the answer to GET_ID: text padded with zeros, not terminated when full."""


class BlkFeature(IntFlag):
    """Feature bits of the block device (virtio 1.3 section 5.2.3)."""

    BARRIER = 1 << 0
    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    GEOMETRY = 1 << 4
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    SCSI = 1 << 7
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    LIFETIME = 1 << 15
    SECURE_ERASE = 1 << 16
    ZONED = 1 << 17


class BlkType(IntEnum):
    """Request types (virtio 1.3 section 5.2.6)."""

    IN = 0
    OUT = 1
    SCSI_CMD = 2
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14


class BlkStatus(IntEnum):
    """The status byte, the last writable byte of a request."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


REQUEST_HEADER = Layout("blk_request", "<IIQ", "type", "ioprio", "sector")

DISCARD_SEGMENT = Layout("blk_discard", "<QII", "sector", "num_sectors", "flags")
"""One range of DISCARD or WRITE_ZEROES; the range's unit is SECTOR_SIZE."""

DISCARD_F_UNMAP = 0x1
"""The only flag of a segment; legal with WRITE_ZEROES alone."""

CONFIG = Layout(
    "blk_config",
    "<QIIHBBIBBHIBxHIIIIIB3x",
    "capacity",
    "size_max",
    "seg_max",
    "cylinders",
    "heads",
    "sectors",
    "blk_size",
    "physical_block_exp",
    "alignment_offset",
    "min_io_size",
    "opt_io_size",
    "wce",
    "num_queues",
    "max_discard_sectors",
    "max_discard_seg",
    "discard_sector_alignment",
    "max_write_zeroes_sectors",
    "max_write_zeroes_seg",
    "write_zeroes_may_unmap",
)
"""Config space up to write-zeroes, 60 bytes; secure erase and zones follow it where offered."""

CONFIG_SECURE_ERASE = Layout(
    "blk_config_secure_erase",
    "<III",
    "max_secure_erase_sectors",
    "max_secure_erase_seg",
    "secure_erase_sector_alignment",
)
"""Bytes 60 to 72 of config space."""

CONFIG_ZONED = Layout(
    "blk_config_zoned",
    "<IIIIIB3x",
    "zone_sectors",
    "max_open_zones",
    "max_active_zones",
    "max_append_sectors",
    "write_granularity",
    "model",
)
"""Bytes 72 to 96 of config space."""
