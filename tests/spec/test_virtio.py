"""The numbers shared by all devices and those of the block device are the specification's."""

from __future__ import annotations

import pytest

from vuproc.spec import blk
from vuproc.spec.virtio import PACKED_DESC, SPLIT_DESC, USED_ELEM, DeviceId, Feature, Status


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("NOTIFY_ON_EMPTY", 24),
        ("LOG_ALL", 26),
        ("ANY_LAYOUT", 27),
        ("INDIRECT_DESC", 28),
        ("EVENT_IDX", 29),
        ("PROTOCOL_FEATURES", 30),
        ("VERSION_1", 32),
        ("ACCESS_PLATFORM", 33),
        ("RING_PACKED", 34),
        ("IN_ORDER", 35),
        ("ORDER_PLATFORM", 36),
        ("SR_IOV", 37),
        ("NOTIFICATION_DATA", 38),
        ("RING_RESET", 40),
    ],
)
def test_feature_has_its_bit(name: str, bit: int) -> None:
    assert Feature[name] == 1 << bit


def test_status_bits() -> None:
    assert Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK | Status.FEATURES_OK == 0x0F
    assert (Status.NEEDS_RESET, Status.FAILED) == (0x40, 0x80)


@pytest.mark.parametrize(
    ("device", "number"),
    [
        (DeviceId.NET, 1),
        (DeviceId.BLK, 2),
        (DeviceId.CONSOLE, 3),
        (DeviceId.RNG, 4),
        (DeviceId.SCSI, 8),
        (DeviceId.VSOCK, 19),
        (DeviceId.SOUND, 25),
        (DeviceId.FS, 26),
        (DeviceId.I2C, 34),
        (DeviceId.CAN, 36),
        (DeviceId.GPIO, 41),
    ],
)
def test_device_has_its_number(device: DeviceId, number: int) -> None:
    assert device == number


def test_ring_entries_have_their_sizes() -> None:
    assert (SPLIT_DESC.size, PACKED_DESC.size, USED_ELEM.size) == (16, 16, 8)


@pytest.mark.parametrize(
    ("field", "offset"),
    [
        ("capacity", 0),
        ("size_max", 8),
        ("seg_max", 12),
        ("cylinders", 16),
        ("blk_size", 20),
        ("physical_block_exp", 24),
        ("min_io_size", 26),
        ("opt_io_size", 28),
        ("wce", 32),
        ("num_queues", 34),
        ("max_discard_sectors", 36),
        ("max_discard_seg", 40),
        ("discard_sector_alignment", 44),
        ("max_write_zeroes_sectors", 48),
        ("max_write_zeroes_seg", 52),
        ("write_zeroes_may_unmap", 56),
    ],
)
def test_block_config_field_lies_where_it_should(field: str, offset: int) -> None:
    assert blk.CONFIG.offsets[field] == offset


def test_block_config_extends_by_whole_parts() -> None:
    sizes = (blk.CONFIG.size, blk.CONFIG_SECURE_ERASE.size, blk.CONFIG_ZONED.size)
    assert sizes == (60, 12, 24)


def test_block_request_structures() -> None:
    assert (blk.REQUEST_HEADER.size, blk.DISCARD_SEGMENT.size) == (16, 16)
    header = {"type": 1, "ioprio": 0, "sector": 2048}
    assert blk.REQUEST_HEADER.unpack(blk.REQUEST_HEADER.pack(**header)) == header


def test_block_request_types_and_status() -> None:
    types = {kind.name: int(kind) for kind in blk.BlkType}
    assert types == {
        "IN": 0,
        "OUT": 1,
        "SCSI_CMD": 2,
        "FLUSH": 4,
        "GET_ID": 8,
        "GET_LIFETIME": 10,
        "DISCARD": 11,
        "WRITE_ZEROES": 13,
        "SECURE_ERASE": 14,
    }
    assert [int(status) for status in blk.BlkStatus] == [0, 1, 2]
