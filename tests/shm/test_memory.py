"""Guest memory: what may be mapped, what an address means, and how long a mapping lives."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shm.guest import BOUNDARY, DATA, END, HOLE, PARTS, Guest, take
from vuproc.errors import MemoryFault
from vuproc.shm.memory import GuestMemory, Mapping
from vuproc.testing.memory import RamRegion

PAGE = 4096
TOP = 1 << 64


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("region", os.MFD_CLOEXEC)
    os.ftruncate(made, 4 * PAGE)
    yield made
    os.close(made)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest() as made:
        yield made


def maps() -> int:
    """How many mappings of memfds this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:region")


def test_a_view_is_the_file(fd: int) -> None:
    memory = GuestMemory().with_region(0x1000, 2 * PAGE, 0x7000, PAGE, fd)
    view = memory.view(0x1000 + 16, 4)
    view[:] = b"abcd"
    assert os.pread(fd, 4, PAGE + 16) == b"abcd"
    assert bytes(memory.user_view(0x7000 + 16, 4)) == b"abcd"


def test_tables_are_immutable_and_share_mappings(fd: int) -> None:
    empty = GuestMemory()
    one = empty.with_region(0, PAGE, 0x10000, 0, fd)
    two = one.with_region(PAGE, PAGE, 0x20000, PAGE, fd)
    assert (len(empty), len(one), len(two), maps()) == (0, 1, 2, 2)
    assert one.regions == ((0, PAGE, 0x10000),)
    back = two.without_region(0, PAGE, 0x10000)
    assert back.regions == ((PAGE, PAGE, 0x20000),)
    del one, two
    assert maps() == 1
    del back
    assert maps() == 0


def test_regions_are_found_whatever_their_order(fd: int) -> None:
    memory = GuestMemory()
    for index in (2, 0, 3, 1):
        memory = memory.with_region(index << 20, PAGE, index << 30, index * PAGE, fd)
    for index in range(4):
        memory.view(index << 20, 1)[:] = bytes([index + 1])
        assert os.pread(fd, 1, index * PAGE) == bytes([index + 1])
    assert [region[0] for region in memory.regions] == [index << 20 for index in range(4)]


def test_a_slice_keeps_the_mapping_after_the_table_is_gone(fd: int) -> None:
    memory = GuestMemory().with_region(0, PAGE, 0, 0, fd)
    view = memory.view(0, PAGE)[8:16]
    del memory
    gc.collect()
    view[:] = b"still on"
    assert maps() == 1
    assert os.pread(fd, 8, 8) == b"still on"
    view.release()
    del view
    assert maps() == 0


def test_nothing_stays_mapped_of_a_table_that_fails(fd: int) -> None:
    with pytest.raises(MemoryFault):
        GuestMemory.from_regions([(0, PAGE, 0, 0, fd), (PAGE, PAGE, PAGE, 8 * PAGE, fd)])
    assert maps() == 0


def test_b02_region_of_size_zero_is_refused(fd: int) -> None:
    with pytest.raises(MemoryFault, match="without bytes"):
        GuestMemory().with_region(0, 0, 0, 0, fd)


@pytest.mark.parametrize("offset", [TOP - PAGE, (1 << 63) - PAGE, (1 << 63) - PAGE - 1, TOP, -PAGE])
def test_b03_size_and_offset_that_wrap_are_refused(fd: int, offset: int) -> None:
    with pytest.raises(MemoryFault):
        GuestMemory().with_region(0, PAGE, 0, offset, fd)


@pytest.mark.parametrize(("guest_addr", "user_addr"), [(TOP - PAGE + 1, 0), (0, TOP - 1), (-1, 0)])
def test_b04_addresses_that_wrap_are_refused(fd: int, guest_addr: int, user_addr: int) -> None:
    with pytest.raises(MemoryFault, match="wrap"):
        GuestMemory().with_region(guest_addr, PAGE, user_addr, 0, fd)


def test_b04_a_region_may_end_at_the_top_of_the_address_space(fd: int) -> None:
    memory = GuestMemory().with_region(TOP - PAGE, PAGE, TOP - PAGE, 0, fd)
    assert len(memory.view(TOP - PAGE, PAGE)) == PAGE
    with pytest.raises(MemoryFault):
        memory.view(TOP - PAGE, PAGE + 1)
    with pytest.raises(MemoryFault):
        memory.gather(TOP - 1, 2)


@pytest.mark.parametrize("shift", [0, 1 - PAGE, PAGE - 1])
def test_b05_regions_that_overlap_are_refused(fd: int, shift: int) -> None:
    memory = GuestMemory().with_region(1 << 20, PAGE, 1 << 30, 0, fd)
    with pytest.raises(MemoryFault, match="guest addresses overlap"):
        memory.with_region((1 << 20) + shift, PAGE, 0, 0, fd)
    with pytest.raises(MemoryFault, match="user addresses overlap"):
        memory.with_region(0, PAGE, (1 << 30) + shift, 0, fd)


@pytest.mark.parametrize("offset", [1, 100, PAGE - 1, PAGE + 512])
def test_b06_an_offset_that_is_no_page_boundary_is_mapped(fd: int, offset: int) -> None:
    memory = GuestMemory().with_region(0, PAGE, 0, offset, fd)
    memory.view(0, PAGE)[:] = b"x" * PAGE
    assert os.pread(fd, 4 * PAGE, 0).strip(b"\0") == b"x" * PAGE
    assert os.pread(fd, 1, offset) == b"x"


@pytest.mark.parametrize(
    ("size", "offset"), [(5 * PAGE, 0), (PAGE, 4 * PAGE), (PAGE, 3 * PAGE + 1)]
)
def test_b07_a_region_past_the_end_of_its_file_is_refused(fd: int, size: int, offset: int) -> None:
    with pytest.raises(MemoryFault, match="past the end of the file"):
        GuestMemory().with_region(0, size, 0, offset, fd)


SHRINK = """
import os
from vuproc.shm.memory import GuestMemory
fd = os.memfd_create("gone")
os.ftruncate(fd, 8192)
view = GuestMemory().with_region(0, 8192, 0, 0, fd).view(4096, 1)
os.ftruncate(fd, 4096)
print("alive", flush=True)
bytes(view)
print("not reached", flush=True)
"""


def test_b08_b11_memory_shrunk_under_a_mapping_kills_just_the_process_that_touches_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHRINK], stdout=subprocess.PIPE, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGBUS
    assert done.stdout == b"alive\n"


def test_b09_a_shrunk_data_page_fails_the_request_and_the_ring_goes_on(
    fd: int, guest: Guest
) -> None:
    guest.memory = guest.memory.with_region(0x400000, 4 * PAGE, 0x400000, 0, fd)
    ring = guest.ring()
    guest.submit(0, [(0x400000, 16, False), (0x400000 + 2 * PAGE, PAGE, True)])
    (request,) = take(ring)
    os.ftruncate(fd, PAGE)
    source = os.memfd_create("source", os.MFD_CLOEXEC)
    os.pwrite(source, b"x" * PAGE, 0)
    try:
        with pytest.raises(OSError, match="Bad address"):
            request.preadv(source, 0)
    finally:
        os.close(source)
    request.finish()
    ring.publish()
    assert guest.reap() == [(0, 0)]
    guest.submit(0, [(DATA, 16, True)])
    (request,) = take(ring)
    request.write(b"fine")
    request.finish()
    ring.publish()
    assert guest.reap() == [(0, 4)]


def test_b10_a_hole_punched_under_the_ring_reads_as_zeros(guest: Guest) -> None:
    ring = guest.ring()
    guest.submit(2, [(DATA, 16, True)])
    guest.bytes[0x1000 : 0x1000 + PAGE] = bytes(PAGE)
    assert take(ring) == []
    assert ring.broken is None


def eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC)


def directory() -> int:
    return os.open("/", os.O_RDONLY | os.O_CLOEXEC)


def read_only() -> int:
    made = os.memfd_create("ro", os.MFD_CLOEXEC)
    try:
        os.ftruncate(made, PAGE)
        return os.open(f"/proc/self/fd/{made}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(made)


def path_only() -> int:
    return os.open("/dev/zero", os.O_PATH | os.O_CLOEXEC)


@pytest.mark.parametrize("make", [eventfd, directory, read_only, path_only])
def test_b12_what_cannot_be_mapped_is_refused_and_nothing_half_done(
    fd: int, make: Callable[[], int]
) -> None:
    memory = GuestMemory().with_region(0, PAGE, 0, 0, fd)
    other = make()
    try:
        with pytest.raises(MemoryFault):
            memory.with_region(PAGE, PAGE, PAGE, 0, other)
    finally:
        os.close(other)
    assert len(memory) == 1 and maps() == 1
    with pytest.raises(MemoryFault, match="bad file descriptor"):
        memory.with_region(PAGE, PAGE, PAGE, 0, other)


def test_b13_no_more_regions_than_there_are_slots(fd: int) -> None:
    memory = GuestMemory()
    for index in range(509):
        memory = memory.with_region(index << 20, PAGE, index << 20, 0, fd)
    with pytest.raises(MemoryFault, match="more than 509"):
        memory.with_region(600 << 20, PAGE, 600 << 20, 0, fd)
    assert (len(memory), maps()) == (509, 509)
    memory.view(508 << 20, PAGE)


@pytest.mark.parametrize(
    "key", [(PAGE, PAGE, 0), (0, PAGE - 1, 0), (0, PAGE, PAGE), (0, TOP, 0), (-1, PAGE, 0)]
)
def test_b14_an_unknown_region_is_not_removed(fd: int, key: tuple[int, int, int]) -> None:
    memory = GuestMemory().with_region(0, PAGE, 0, 0, fd)
    with pytest.raises(MemoryFault, match="no such region"):
        memory.without_region(*key)
    assert len(memory) == 1


def test_b16_a_range_over_two_neighbours_comes_in_pieces(guest: Guest) -> None:
    pieces = guest.memory.gather(BOUNDARY - 3, 7)
    assert [len(piece) for piece in pieces] == [3, 4]
    for i, piece in enumerate(pieces):
        piece[:] = bytes([65 + i]) * len(piece)
    assert guest.read(BOUNDARY - 3, 3) + guest.read(BOUNDARY, 4) == b"AAABBBB"
    with pytest.raises(MemoryFault):
        guest.memory.view(BOUNDARY - 3, 7)


@pytest.mark.parametrize(
    ("addr", "length"),
    [(0, 1), (HOLE - 1, 2), (HOLE, 1), (END - 1, 2), (END, 1), (PARTS[0].guest - 1, 2)],
)
def test_b17_the_whole_range_is_checked(guest: Guest, addr: int, length: int) -> None:
    with pytest.raises(MemoryFault):
        guest.memory.gather(addr, length)
    with pytest.raises(MemoryFault):
        guest.memory.view(addr, length)


@pytest.mark.parametrize("addr", [DATA, TOP - 1, TOP - PAGE])
@pytest.mark.parametrize("length", [TOP - 1, TOP - DATA, 1 << 63])
def test_b18_address_and_length_that_wrap_are_outside(guest: Guest, addr: int, length: int) -> None:
    for look in (guest.memory.gather, guest.memory.view, guest.memory.user_view):
        with pytest.raises(MemoryFault):
            look(addr, length)


def test_b23_b24_mappings_are_neither_dumped_nor_inherited(fd: int) -> None:
    memory = GuestMemory().with_region(0, PAGE, 0, 0, fd)
    entry = Path("/proc/self/smaps").read_text().partition("memfd:region")[2]
    flags = entry.partition("VmFlags:")[2].partition("\n")[0].split()
    assert "dd" in flags and "dc" in flags
    assert len(memory) == 1


def test_a_mapping_is_a_buffer(fd: int) -> None:
    mapping = Mapping(fd, 100, PAGE + 10)
    assert mapping.size == 100
    view = memoryview(mapping)
    assert (view.nbytes, view.readonly) == (100, False)
    view[:3] = b"abc"
    assert os.pread(fd, 3, PAGE + 10) == b"abc"


@given(addr=st.integers(0, 0x90000), length=st.integers(1, 0x30000))
def test_translation_agrees_with_a_map_of_bytes(addr: int, length: int) -> None:
    size, edge = 0x8000, 0x10000
    fd = os.memfd_create("translate", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, 4 * size)
        memory = GuestMemory()
        spots = {0x10000: 0, 0x18000: 2 * size, 0x20000: size, 0x40000: 3 * size}
        for start, offset in spots.items():
            memory = memory.with_region(start, size, start + edge, offset, fd)
        covered = all(
            any(start <= byte < start + size for start in spots)
            for byte in {addr, addr + length - 1, *range(addr, addr + length, size)}
        )
        if not covered:
            with pytest.raises(MemoryFault):
                memory.gather(addr, length)
            return
        with mmap.mmap(fd, 4 * size) as plain:
            position = addr
            for piece in memory.gather(addr, length):
                start = max(known for known in spots if known <= position)
                piece[:1] = b"!"
                at = spots[start] + position - start
                assert plain[at] == ord("!")
                plain[at] = 0
                position += len(piece)
            assert position == addr + length
    finally:
        os.close(fd)


PAGE = 4096
USER = 0x7F00_0010_0000


def test_pages_that_lie_apart_are_joined() -> None:
    with RamRegion(1 << 20, 8 * PAGE, user_addr=USER) as region:
        fields = region.guest_addr, region.size, region.user_addr, 0, region.fd.fileno()
        plain = GuestMemory.from_regions([fields])
        order = [5, 0, 3, 4]
        joined, start = plain.joined([USER + page * PAGE for page in order])
        view = joined.user_view(start, 4 * PAGE)
        for place, page in enumerate(order):
            region.buffer[page * PAGE + 7] = page + 1
            assert view[place * PAGE + 7] == page + 1
            view[place * PAGE + 9] = page + 100
            assert region.buffer[page * PAGE + 9] == page + 100
        # Other tables may have them, too, and all go when nobody has.
        again = plain.with_joined_of(joined)
        assert again.user_view(start, 4 * PAGE) == view
        assert len(plain) == 1 and len(joined) == len(again) == 2
        other, second = joined.joined([USER + PAGE])
        assert second >= start + 4 * PAGE and len(other) == 3


@pytest.mark.parametrize("pages", [[], [USER + 1], [USER + 8 * PAGE], [USER - PAGE], [0]])
def test_what_is_no_page_is_not_joined(pages: list[int]) -> None:
    with RamRegion(1 << 20, 8 * PAGE, user_addr=USER) as region:
        fields = region.guest_addr, region.size, region.user_addr, 0, region.fd.fileno()
        with pytest.raises(MemoryFault):
            GuestMemory.from_regions([fields]).joined(pages)
