"""What native code has in numbers of its own is what `vuproc/spec` has.

An enum of C cannot be imported, so the sources are read. A room that drops its own number in favour
of another's is no mistake; one that has another value is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from vuproc.cli.main import LOG_LEVELS
from vuproc.device_file.model import LogLevel
from vuproc.devices import blk_description, blk_native
from vuproc.devices.blk_storage import DIRECT_ALIGNMENT
from vuproc.options import MAX_QUEUES
from vuproc.spec.blk import DISCARD_F_UNMAP, SECTOR_SIZE, BlkType
from vuproc.spec.inflight import RECORD_ALIGN
from vuproc.spec.iotlb import IOTLB_PAGE, Access
from vuproc.spec.vhost_user import MEM_SLOTS_MAX, VRINGS_MAX, XEN_PAGE
from vuproc.spec.virtio import (
    AVAIL_F_NO_INTERRUPT,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    QUEUE_SIZE_MAX,
    USED_F_NO_NOTIFY,
)
from vuproc.vhost_user.state import Offer

PACKAGE = Path(__file__).parents[2] / "vuproc"
NUMBER = re.compile(r"^ +([A-Z_]+) = (0x[0-9a-f]+|[0-9]+)\b", re.MULTILINE)

UIO_MAXIOV = 1024
"""The kernel's (uapi/linux/uio.h)."""

WANTED = (
    ("shm", ("MAX_SIZE", "MAX_ENTRIES"), QUEUE_SIZE_MAX),
    ("testing", ("MAX_SIZE",), QUEUE_SIZE_MAX),
    ("shm", ("MAX_REGIONS",), MEM_SLOTS_MAX),
    ("shm", ("IOV_MAX",), UIO_MAXIOV),
    ("shm", ("DESC_NEXT",), DESC_F_NEXT),
    ("shm", ("DESC_WRITE",), DESC_F_WRITE),
    ("shm", ("DESC_INDIRECT",), DESC_F_INDIRECT),
    ("shm", ("NO_INTERRUPT",), AVAIL_F_NO_INTERRUPT),
    ("shm", ("NO_NOTIFY",), USED_F_NO_NOTIFY),
    ("shm", ("ACCESS_READ",), Access.READ),
    ("shm", ("ACCESS_WRITE",), Access.WRITE),
    ("shm", ("PAGE",), IOTLB_PAGE),
    ("shm", ("PAGE",), XEN_PAGE),
    ("shm", ("DIRECT_ALIGNMENT",), DIRECT_ALIGNMENT),
    ("shm", ("ALIGNMENT",), RECORD_ALIGN),
    ("devices", ("ALIGNMENT",), DIRECT_ALIGNMENT),
    ("devices", ("SECTOR",), SECTOR_SIZE),
    ("devices", ("TYPE_IN",), BlkType.IN),
    ("devices", ("TYPE_OUT",), BlkType.OUT),
    ("devices", ("TYPE_FLUSH",), BlkType.FLUSH),
    ("devices", ("TYPE_GET_ID",), BlkType.GET_ID),
    ("devices", ("TYPE_DISCARD",), BlkType.DISCARD),
    ("devices", ("TYPE_WRITE_ZEROES",), BlkType.WRITE_ZEROES),
    ("devices", ("UNMAP",), DISCARD_F_UNMAP),
)
"""Room, names that an enum there gives the number, and the number."""


def enum_numbers(room: str) -> list[tuple[str, str, int]]:
    """(file, name, number) for each number of an enum in the room's native sources."""
    return [
        (path.name, name, int(number, 0))
        for path in sorted((PACKAGE / room).rglob("*.p[yx][xd]"))
        for name, number in NUMBER.findall(path.read_text())
    ]


@pytest.mark.parametrize(("room", "names", "wanted"), WANTED, ids=lambda each: str(each))
def test_an_enum_has_the_specifications_number(
    room: str, names: tuple[str, ...], wanted: int
) -> None:
    found = [each for each in enum_numbers(room) if each[1] in names]
    assert found, f"no enum in vuproc/{room} has {' or '.join(names)}: drop it from this test"
    assert [each for each in found if each[2] != wanted] == []


def test_native_code_has_room_for_the_ranges_that_the_driver_is_promised() -> None:
    promised = max(blk_description.MAX_DISCARD_SEGMENTS, blk_description.MAX_WRITE_ZEROES_SEGMENTS)
    assert promised <= blk_native.MAX_RANGES


def test_python_has_one_number_where_the_worker_must_not_import_the_other() -> None:
    assert MAX_QUEUES == VRINGS_MAX
    assert get_args(LogLevel) == LOG_LEVELS
    offer = Offer(features=0, protocol_features=0, num_queues=1, queue_size=2, config_size=0)
    assert offer.max_regions == MEM_SLOTS_MAX
