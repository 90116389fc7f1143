"""Catalogue rows B1 to B6 and B12 to B15: memory tables that cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import processes
from tests.conformance.checks import (
    BROKEN_WITHIN_S,
    Rejects,
    broken,
    closed,
    serves_newcomer,
    works,
)
from vuproc.fd import Fd
from vuproc.spec.vhost_user import FRONT_END, MEM_REGION, MEM_TABLE_HEADER, U64
from vuproc.testing.bell import Bell
from vuproc.testing.errors import Refused
from vuproc.testing.memory import Ram, RamRegion
from vuproc.testing.serve import Served
from vuproc.vhost_user.wire import encode

FAR = 1 << 40  # a guest address that no test guest uses
PAGE = 4096
END = 1 << 64


def memfd(size: int = 1 << 20) -> Fd:
    fd = Fd(os.memfd_create("hostile", os.MFD_CLOEXEC))
    os.ftruncate(fd.fileno(), size)
    return fd


@pytest.mark.parametrize("count", [0, 2, 9, 254, 0x7FFFFFF, 0x8000000, 0xFFFFFFFF])
@pytest.mark.parametrize("fds", [0, 1, 8])
def test_b01_count_of_regions_that_is_not_what_came(disk: Served, count: int, fds: int) -> None:
    """One region's worth of bytes, `count` regions said, `fds` descriptors attached."""
    payload = MEM_TABLE_HEADER.pack(nregions=count) + MEM_REGION.pack(
        guest_addr=FAR, size=PAGE, user_addr=FAR
    )
    with disk.guest(queues=2) as guest, ExitStack() as stack:
        attached = [stack.enter_context(memfd()) for _ in range(fds)]
        with pytest.raises(Refused):
            guest.front_end.request("SET_MEM_TABLE", attached, payload=payload)
        works(guest)


def test_b01_more_descriptors_than_regions(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        region = guest.ram.regions[0]
        with memfd() as surplus, pytest.raises(Refused):
            guest.front_end.request("SET_MEM_TABLE", [region.fd, surplus], items=[region.fields])
        works(guest)


BAD_REGIONS = {
    "b02_size_0": {"size": 0},
    "b03_offset_wraps": {"mmap_offset": END - PAGE, "size": 2 * PAGE},
    "b03_offset_reaches_the_end": {"mmap_offset": END - PAGE},
    "b03_size_and_offset_beyond_63_bits": {"mmap_offset": 1 << 62, "size": 1 << 62},
    "b04_guest_address_wraps": {"guest_addr": END - PAGE, "size": 2 * PAGE},
    "b04_user_address_wraps": {"user_addr": END - PAGE, "size": 2 * PAGE},
    "b07_larger_than_its_file": {"size": (1 << 20) + PAGE},
    "b07_starts_behind_its_file": {"mmap_offset": 1 << 20},
    "b07_larger_by_its_offset": {"mmap_offset": PAGE, "size": 1 << 20},
    "b07_absurdly_large": {"size": 1 << 46},
}


@pytest.mark.parametrize("message", ["ADD_MEM_REG", "SET_MEM_TABLE"])
@pytest.mark.parametrize("change", BAD_REGIONS.values(), ids=BAD_REGIONS.keys())
def test_b02_b03_b04_b07_region_that_cannot_be(
    rejects: Rejects, message: str, change: dict[str, int]
) -> None:
    region = {"guest_addr": FAR, "size": PAGE, "user_addr": FAR, "mmap_offset": 0, **change}
    fields: dict[str, Any] = region if message == "ADD_MEM_REG" else {"items": [region]}
    rejects(message, fds=lambda: [memfd()], **fields)


@pytest.mark.parametrize("address", ["guest_addr", "user_addr"])
@pytest.mark.parametrize("shift", [-PAGE, 0, PAGE])
def test_b05_region_that_overlaps_another(disk: Served, address: str, shift: int) -> None:
    with disk.guest(queues=2, memory=1 << 20) as guest:
        there = guest.ram.regions[0]
        region = {"guest_addr": FAR, "user_addr": FAR, "size": 2 * PAGE, "mmap_offset": 0}
        region[address] = there.fields[address] + shift
        with memfd() as fd, pytest.raises(Refused):
            guest.front_end.request("ADD_MEM_REG", [fd], payload=None, **_any(region))
        works(guest)


def test_b05_table_that_overlaps_itself(disk: Served) -> None:
    with disk.guest(queues=2) as guest, memfd() as first, memfd() as second:
        items = [
            {"guest_addr": FAR, "user_addr": FAR, "size": 2 * PAGE, "mmap_offset": 0},
            {"guest_addr": FAR + PAGE, "user_addr": 2 * FAR, "size": PAGE, "mmap_offset": 0},
        ]
        with pytest.raises(Refused):
            guest.front_end.request("SET_MEM_TABLE", [first, second], items=items)
        works(guest)


@pytest.mark.parametrize("offset", [16, 512, PAGE + 2048, 0xC4F000])
def test_b06_offset_in_the_file_that_is_not_page_aligned(disk: Served, offset: int) -> None:
    ram = Ram([RamRegion(1 << 20, 1 << 20, mmap_offset=offset)])
    with disk.guest(queues=2, memory=ram) as guest:
        works(guest)


def test_b06_offset_by_which_no_ring_is_aligned_in_the_back_end(disk: Served) -> None:
    """Its indices cannot be read at once there, so the ring is refused."""
    ram = Ram([RamRegion(1 << 20, 1 << 20, mmap_offset=1)])
    with disk.guest(start=False, memory=ram) as guest:
        guest.setup()
        with pytest.raises(Refused):
            guest.start_queue(0)
    serves_newcomer(disk)


@contextmanager
def pipe_end() -> Iterator[Fd]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with Fd(reader), Fd(writer) as fd:
        yield fd


@contextmanager
def path_fd(path: str, flags: int) -> Iterator[Fd]:
    with Fd(os.open(path, flags | os.O_CLOEXEC)) as fd:
        yield fd


@contextmanager
def eventfd() -> Iterator[Fd]:
    bell = Bell()
    yield bell.ours
    bell.close()


NOT_MEMORY: dict[str, Callable[[Path], Any]] = {
    "eventfd": lambda path: eventfd(),
    "pipe": lambda path: pipe_end(),
    "directory": lambda path: path_fd(str(path), os.O_RDONLY),
    "read_only_file": lambda path: path_fd(_file(path), os.O_RDONLY),
    "write_only_file": lambda path: path_fd(_file(path), os.O_WRONLY),
    "path_only": lambda path: path_fd(_file(path), os.O_PATH),
    "dev_null": lambda path: path_fd("/dev/null", os.O_RDWR),
}


@pytest.mark.parametrize("message", ["ADD_MEM_REG", "SET_MEM_TABLE"])
@pytest.mark.parametrize("make", NOT_MEMORY.values(), ids=NOT_MEMORY.keys())
def test_b12_descriptor_that_is_no_memory(
    disk: Served, tmp_path: Path, message: str, make: Callable[[Path], Any]
) -> None:
    region: dict[str, Any] = {
        "guest_addr": FAR,
        "user_addr": FAR,
        "size": PAGE,
        "mmap_offset": 0,
    }
    fields = region if message == "ADD_MEM_REG" else {"items": [region]}
    with disk.guest(queues=2) as guest, make(tmp_path) as fd:
        with pytest.raises(Refused):
            guest.front_end.request(message, [fd], **fields)
        works(guest)


def test_b12_second_region_of_a_table_is_bad_and_the_first_is_not_taken(disk: Served) -> None:
    with disk.guest(queues=2) as guest, memfd() as good, eventfd() as bad:
        items = [
            {"guest_addr": FAR, "user_addr": FAR, "size": PAGE, "mmap_offset": 0},
            {"guest_addr": 2 * FAR, "user_addr": 2 * FAR, "size": PAGE, "mmap_offset": 0},
        ]
        with pytest.raises(Refused):
            guest.front_end.request("SET_MEM_TABLE", [good, bad], items=items)
        works(guest)


@pytest.mark.proves("GET_MAX_MEM_SLOTS", front_end="built-in")
def test_b13_more_regions_than_there_are_slots(disk: Served) -> None:
    row = FRONT_END.named("ADD_MEM_REG")
    with disk.guest(queues=1) as guest, memfd(PAGE) as fd:
        slots = guest.front_end.request("GET_MAX_MEM_SLOTS")["value"]
        assert slots == 509
        codes = []
        for number in range(700):
            address = FAR + number * PAGE
            body = row.payload.encode(
                guest_addr=address, user_addr=address, size=PAGE, mmap_offset=0
            )
            guest.front_end.send(encode(row.number, body, flags=9), [fd])
            codes.append(U64.unpack(guest.front_end.receive().payload)["value"])
        # One is the guest's own.
        assert codes == [0] * (slots - 1) + [1] * (700 - slots + 1)
        works(guest)
        assert processes.files_of(disk.pid).total() < slots + 100


@pytest.mark.parametrize("change", [{"guest_addr": FAR}, {"user_addr": FAR}, {"size": PAGE}])
def test_b14_removal_of_a_region_that_is_not_there(disk: Served, change: dict[str, int]) -> None:
    with disk.guest(queues=2) as guest:
        fields = {**guest.ram.regions[0].fields, **change}
        with pytest.raises(Refused):
            guest.front_end.request("REM_MEM_REG", payload=None, **_any(fields))
        works(guest)


@pytest.mark.parametrize("how", ["REM_MEM_REG", "SET_MEM_TABLE"])
def test_b15_removal_of_the_region_in_which_a_ring_lives(disk: Served, how: str) -> None:
    """That ring breaks, the other goes on; set up anew it lives again."""
    ring, rest = RamRegion(1 << 20, 64 << 10), RamRegion(1 << 30, 4 << 20)
    with disk.guest(memory=Ram([ring, rest]), start=False) as guest:
        guest.setup()
        guest.start_queue(0)
        assert guest.queues[0].block.region is ring
        guest.ram.regions.reverse()  # all else goes into the other
        guest.start_queue(1)
        assert guest.queues[1].block.region is rest
        guest.set_status(15)
        works(guest)
        if how == "REM_MEM_REG":
            guest.front_end.remove_region(ring)
        else:
            guest.front_end.set_memory([rest])
        guest.queues[0].kick()
        broken(guest)


def test_b15_removal_of_all_memory_under_two_running_rings(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        guest.front_end.remove_region(guest.ram.regions[0])
        for queue in guest.queues.values():
            assert queue.err_bell.wait(BROKEN_WITHIN_S)
        guest.front_end.add_region(guest.ram.regions[0])
        guest.reset()
        works(guest)


def test_b21_b22_ring_misaligned_or_outside_of_memory(disk: Served) -> None:
    with disk.guest(queues=1) as guest:
        queue = guest.make_queue(1, size=256)
        region = guest.ram.regions[0]
        end = region.user_addr + region.size
        good = {"desc": queue.desc, "avail": queue.avail, "used": queue.used}
        guest.front_end.request("SET_VRING_NUM", index=1, num=256)
        for change in (
            {"desc": queue.desc + 8},
            {"avail": queue.avail + 1},
            {"used": queue.used + 2},
            {"desc": end - 16 * 255},
            {"avail": end - (6 + 2 * 256) + 2},
            {"used": end - (6 + 8 * 256) + 4 & ~3},
            {"desc": 0},
            {"avail": region.guest_addr},
            {"used": END - 4},
            {"desc": END - 16 * 256},
        ):
            with pytest.raises(Refused):
                guest.front_end.request(
                    "SET_VRING_ADDR", payload=None, index=1, **_any({**good, **change})
                )
        works(guest, 0)
        guest.configure_queue(queue)
        guest.kick_queue(queue)
        guest.enable_queue(1)
        works(guest)


def test_b22_ring_that_fits_until_its_size_is_told(disk: Served) -> None:
    """Addresses first, then a size with which it passes the end."""
    with disk.guest(queues=1) as guest:
        region = guest.ram.regions[0]
        at = region.user_addr + region.size - 128
        request = guest.front_end.request
        request("SET_VRING_ADDR", index=1, desc=at, avail=at + 64, used=at + 96)
        request("SET_VRING_BASE", index=1, num=0)
        bell = Bell(rings=False)
        with pytest.raises(Refused):
            request("SET_VRING_NUM", index=1, num=256)
            request("SET_VRING_KICK", [bell.theirs], value=1)
        bell.close()
        works(guest, 0)


def test_b20_areas_of_a_ring_that_overlap(disk: Served) -> None:
    """Legal or refused, but nothing loops, dies or disturbs another."""
    for layout in ((0, 0, 0), (0, 64, 64), (0, 32, 16), (16, 0, 4)):
        with disk.guest(queues=1) as guest:
            queue = guest.make_queue(1, size=2)
            request = guest.front_end.request
            desc, avail, used = (queue.desc + offset for offset in layout)
            try:
                request("SET_VRING_NUM", index=1, num=2)
                request("SET_VRING_BASE", index=1, num=0)
                request("SET_VRING_ADDR", index=1, desc=desc, avail=avail, used=used)
                guest.kick_queue(queue)
                guest.enable_queue(1)
            except Refused:
                pass
            for value in range(0, 0x10000, 0x1111):
                queue.block.view[:64] = value.to_bytes(2, "little") * 32
                queue.kick()
            works(guest, 0)
    serves_newcomer(disk)


def test_b01_table_without_a_way_to_report_closes(disk: Served) -> None:
    with disk.guest(queues=2) as guest:
        row = FRONT_END.named("SET_MEM_TABLE")
        guest.front_end.send(encode(row.number, MEM_TABLE_HEADER.pack(nregions=0xFFFFFFFF)))
        closed(guest.front_end)
    serves_newcomer(disk)


def _any(fields: dict[str, int]) -> dict[str, Any]:
    return dict(fields)


def _file(directory: Path) -> str:
    path = directory / "file"
    path.write_bytes(bytes(1 << 20))
    return str(path)
