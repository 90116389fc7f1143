"""Catalogue rows C32, C33 and C39: block requests that ask for what is not there."""

from __future__ import annotations

import os

import pytest

from tests.conformance.checks import works
from vuproc.spec.blk import BlkStatus, BlkType
from vuproc.testing.block import Block
from vuproc.testing.serve import Served

SECTORS = 32768  # of the 16 MiB disk
END = 1 << 64
FAILED = (BlkStatus.IOERR, BlkStatus.UNSUPP)


@pytest.mark.parametrize(
    ("sector", "size"),
    [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (SECTORS - 1, 513),
        (END // 512, 512),
        (END // 512 - 1, 512),
        (END // 512 - 1, 1024),
        (END - 1, 512),
        (1 << 63, 512),
        (0, 511),
        (0, 513),
        (0, 1),
    ],
)
@pytest.mark.parametrize("kind", [BlkType.IN, BlkType.OUT])
def test_c32_sectors_that_are_not_there_or_not_whole(
    disk: Served, kind: BlkType, sector: int, size: int
) -> None:
    with disk.guest(queues=2) as guest:
        block = Block(guest)
        if kind is BlkType.IN:
            answer = block.request(kind, sector, in_=[size])
        else:
            answer = block.request(kind, sector, out=[bytes(size)])
        assert answer.status == BlkStatus.IOERR
        works(guest)


def test_c32_last_sector_is_there(disk: Served) -> None:
    with disk.guest() as guest:
        block, content = Block(guest), os.urandom(512)
        block.write(SECTORS - 1, content)
        assert block.read(SECTORS - 1, 512) == content


@pytest.mark.parametrize("kind", [2, 3, 5, 10, 12, 14, 0xFFFF, 0x80000000, 0xFFFFFFFF])
def test_c33_unknown_type(disk: Served, kind: int) -> None:
    with disk.guest(queues=2) as guest:
        assert Block(guest).request(kind, in_=[512]).status == BlkStatus.UNSUPP
        works(guest)


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 0xFFFFFFFF)],
        [(SECTORS, 1)],
        [(SECTORS - 1, 2)],
        [(END - 1, 1)],
        [(END // 512, 8)],
        [(0, 8)] * 1000,
        [],
    ],
    ids=["2_to_the_32", "behind", "over_the_end", "last", "wraps", "too_many", "none"],
)
@pytest.mark.parametrize("kind", [BlkType.DISCARD, BlkType.WRITE_ZEROES])
def test_c33_ranges_beyond_what_is_allowed(
    disk: Served, kind: BlkType, ranges: list[tuple[int, int]]
) -> None:
    with disk.guest(queues=2) as guest:
        block = Block(guest)
        answer = (block.discard if kind is BlkType.DISCARD else block.write_zeroes)(*ranges)
        assert answer.status in FAILED
        works(guest)


@pytest.mark.parametrize("flags", [2, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", [BlkType.DISCARD, BlkType.WRITE_ZEROES])
def test_c33_unknown_flags_of_a_range(disk: Served, kind: BlkType, flags: int) -> None:
    with disk.guest(queues=2) as guest:
        segment = bytes(8) + (8).to_bytes(4, "little") + flags.to_bytes(4, "little")
        assert Block(guest).request(kind, out=[segment]).status in FAILED
        works(guest)


@pytest.mark.parametrize("length", [1, 15, 17, 31])
def test_c33_range_that_is_not_whole(disk: Served, length: int) -> None:
    with disk.guest(queues=2) as guest:
        assert Block(guest).request(BlkType.DISCARD, out=[bytes(length)]).status in FAILED
        works(guest)


@pytest.mark.parametrize("kind", [BlkType.DISCARD, BlkType.WRITE_ZEROES])
def test_c33_range_of_no_sectors_harms_nothing(disk: Served, kind: BlkType) -> None:
    with disk.guest(queues=2) as guest:
        block, content = Block(guest), os.urandom(512)
        block.write(0, content)
        answer = (block.discard if kind is BlkType.DISCARD else block.write_zeroes)((0, 0))
        assert answer.status in (BlkStatus.OK, *FAILED)
        assert block.read(0, 512) == content


@pytest.mark.parametrize("size", [0, 1, 19, 21, 4096])
def test_c33_identity_into_a_buffer_of_any_size(disk: Served, size: int) -> None:
    with disk.guest(queues=2) as guest:
        answer = Block(guest).request(BlkType.GET_ID, in_=[size])
        assert answer.status in (BlkStatus.OK, *FAILED)
        assert answer.written <= size + 1
        works(guest)


def test_c39_used_length_is_what_was_written(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        block = Block(guest)
        assert block.request(BlkType.IN, 0, in_=[1024]).written == 1025
        assert block.request(BlkType.OUT, 0, [bytes(1024)]).written == 1
        assert block.request(BlkType.FLUSH).written == 1
        # A failed read has written its status and no data; the buffer is as the driver left it.
        failed = block.request(BlkType.IN, SECTORS, in_=[1024])
        assert failed.data == bytes(1024)
        assert failed.written <= 1025
