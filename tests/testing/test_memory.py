"""Guest RAM: blocks never overlap, and freed ones can be had again."""

from __future__ import annotations

import itertools
import mmap
import os
import sys
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vuproc.testing.errors import OutOfMemory
from vuproc.testing.memory import Ram, RamRegion


def test_region_lies_behind_its_offset_in_the_file() -> None:
    with RamRegion(0x10000, 8192, mmap_offset=4096) as region:
        assert region.fd.size == 4096 + 8192
        region.buffer[:4] = b"here"
        assert os.pread(region.fd.fileno(), 4, 4096) == b"here"
        assert len(region.buffer) == 8192


def test_block_has_both_addresses() -> None:
    with RamRegion(0x10000, 8192, user_addr=0x5000000) as region:
        first, second = region.allocate(100), region.allocate(1, align=4096)
        assert first is not None and second is not None
        assert (first.guest_addr, first.user_addr) == (0x10000, 0x5000000)
        assert (second.guest_addr, second.user_addr) == (0x11000, 0x5001000)
        assert len(second.view) == 1


def test_full_memory_says_what_was_asked() -> None:
    ram = Ram(mmap.PAGESIZE)
    with pytest.raises(OutOfMemory) as caught:
        ram.allocate(mmap.PAGESIZE + 1)
    assert caught.value.size == mmap.PAGESIZE + 1
    ram.close()


def test_second_region_is_used_when_the_first_is_full() -> None:
    ram = Ram([RamRegion(0, 4096), RamRegion(1 << 30, 4096)])
    assert ram.allocate(4096).guest_addr == 0
    assert ram.allocate(4096).guest_addr == 1 << 30
    ram.close()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([1, 16, 64])), max_size=40))
def test_blocks_do_not_overlap_and_all_memory_comes_back(wanted: list[tuple[int, int]]) -> None:
    with RamRegion(0x1000, 8192) as region:
        blocks = [block for size, align in wanted if (block := region.allocate(size, align))]
        spans = sorted((block.offset, block.offset + block.size) for block in blocks)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        for block in blocks[::2] + blocks[1::2]:
            block.free()
        whole = region.allocate(8192)
        assert whole is not None
        whole.view.release()


def test_threads_have_blocks_of_their_own() -> None:
    """One a queue drives a guest's load."""
    wrong: list[int] = []

    def use(region: RamRegion, number: int) -> None:
        for turn in range(3000):
            block = region.allocate(4096 * (1 + turn % 3), 64)
            assert block is not None
            block.view[:] = bytes([number]) * block.size
            if bytes(block.view) != bytes([number]) * block.size:
                wrong.append(number)
            block.free()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with RamRegion(1 << 20, 1 << 20) as region:
            threads = [Thread(target=use, args=(region, number)) for number in (1, 2, 3, 4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            # Nothing was given back twice, or is lost.
            whole = region.allocate(1 << 20)
            assert whole is not None and region.allocate(1) is None
            whole.free()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
