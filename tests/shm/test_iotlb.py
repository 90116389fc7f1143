"""The cache of an IOMMU's translations, alone and against a model in plain Python."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from vuproc.errors import MemoryFault
from vuproc.shm.iotlb import ENTRIES_MAX, Iotlb, keep_at_most
from vuproc.shm.memory import GuestMemory
from vuproc.spec.iotlb import Access
from vuproc.testing.memory import RamRegion

PAGE = 4096
READ, WRITE, BOTH = Access.READ, Access.WRITE, Access.READ | Access.WRITE
USER = 0x7F00_0010_0000
IOVA = 0x1234_5678_9000
END = 1 << 64


@pytest.fixture
def region() -> Iterator[RamRegion]:
    with RamRegion(1 << 20, 64 * PAGE, user_addr=USER) as made:
        yield made


@pytest.fixture
def memory(region: RamRegion) -> GuestMemory:
    fields = region.guest_addr, region.size, region.user_addr, region.mmap_offset
    return GuestMemory.from_regions([(*fields, region.fd.fileno())])


def test_a_range_is_where_it_was_said_to_be(region: RamRegion, memory: GuestMemory) -> None:
    iotlb = Iotlb()
    iotlb.update(IOVA, 2 * PAGE, USER + 5 * PAGE, BOTH)
    region.buffer[5 * PAGE : 7 * PAGE] = data = os.urandom(2 * PAGE)
    (view,) = iotlb.gather(memory, IOVA + 10, 2 * PAGE - 10, READ) or ()
    assert view == data[10:]
    assert iotlb.place(memory, IOVA + 16, 100, WRITE) == USER + 5 * PAGE + 16
    assert iotlb.take_misses() == []


def test_what_is_not_known_is_missed_page_by_page(memory: GuestMemory) -> None:
    iotlb = Iotlb()
    iotlb.update(IOVA + PAGE, PAGE, USER, READ)
    assert iotlb.gather(memory, IOVA + 100, 2 * PAGE, READ) is None
    assert iotlb.take_misses() == [(IOVA, READ), (IOVA + 2 * PAGE, READ)]
    assert iotlb.take_misses() == []


def test_only_the_access_that_is_not_known_is_missed(memory: GuestMemory) -> None:
    """Who answers a question about writing for writing alone must be asked about reading, too."""
    iotlb = Iotlb()
    assert iotlb.gather(memory, IOVA, 8, BOTH) is None
    iotlb.update(IOVA, PAGE, USER, WRITE)
    assert iotlb.gather(memory, IOVA, 8, BOTH) is None
    assert iotlb.take_misses() == [(IOVA, BOTH), (IOVA, READ)]
    iotlb.update(IOVA, PAGE, USER, READ)
    assert iotlb.gather(memory, IOVA, 8, BOTH) is not None
    iotlb.update(IOVA, PAGE, USER + PAGE, READ)
    assert iotlb.gather(memory, IOVA, 8, WRITE) is None, "another page has rights of its own"


def test_pages_that_follow_one_another_are_one_piece(memory: GuestMemory) -> None:
    iotlb = Iotlb()
    for page, user in enumerate((3, 4, 5, 9, 8)):
        iotlb.update(IOVA + page * PAGE, PAGE, USER + user * PAGE, BOTH)
    sizes = [view.nbytes for view in iotlb.gather(memory, IOVA, 5 * PAGE, READ) or ()]
    assert sizes == [3 * PAGE, PAGE, PAGE]
    assert iotlb.place(memory, IOVA, 3 * PAGE, READ) == USER + 3 * PAGE
    with pytest.raises(MemoryFault):
        iotlb.place(memory, IOVA, 4 * PAGE, READ)


def test_two_regions_are_two_pieces_even_side_by_side() -> None:
    with (
        RamRegion(1 << 20, PAGE, user_addr=USER) as one,
        RamRegion(1 << 30, PAGE, user_addr=USER + PAGE) as other,
    ):
        memory = GuestMemory.from_regions(
            (r.guest_addr, r.size, r.user_addr, 0, r.fd.fileno()) for r in (one, other)
        )
        iotlb = Iotlb()
        iotlb.update(IOVA, 2 * PAGE, USER, BOTH)
        assert [v.nbytes for v in iotlb.gather(memory, IOVA, 2 * PAGE, READ) or ()] == [PAGE, PAGE]


def test_what_lies_in_no_memory_is_asked_for_again(memory: GuestMemory) -> None:
    iotlb = Iotlb()
    iotlb.update(IOVA, PAGE, USER + (64 << 20), BOTH)
    assert iotlb.gather(memory, IOVA, 8, READ) is None
    assert iotlb.take_misses() == [(IOVA, READ)]


@pytest.mark.parametrize(
    ("iova", "size", "user"),
    [(0, 0, 0), (END - PAGE, PAGE + 1, 0), (0, PAGE + 1, END - PAGE), (1, END, 0)],
)
def test_ranges_that_there_cannot_be(iova: int, size: int, user: int) -> None:
    iotlb = Iotlb()
    with pytest.raises(MemoryFault):
        iotlb.update(iova, size, user, BOTH)
    assert len(iotlb) == 0


def test_the_last_address_there_is(memory: GuestMemory) -> None:
    iotlb = Iotlb()
    iotlb.update(END - PAGE, PAGE, USER, BOTH)
    assert iotlb.place(memory, END - PAGE, PAGE, READ) == USER
    with pytest.raises(MemoryFault):
        iotlb.gather(memory, END - 8, 16, READ)
    assert iotlb.invalidate(0, END - 1) == 1 and len(iotlb) == 0


def test_a_flood_of_translations_is_bounded(memory: GuestMemory) -> None:
    iotlb = Iotlb()
    for page in range(ENTRIES_MAX + 100):
        iotlb.update(IOVA + 2 * page * PAGE, PAGE, USER, BOTH)
    assert len(iotlb) == ENTRIES_MAX
    last = IOVA + 2 * (ENTRIES_MAX + 99) * PAGE
    assert iotlb.place(memory, last, PAGE, READ) == USER


@pytest.fixture
def few() -> Iterator[int]:
    """So many translations are kept."""
    keep_at_most(3)
    yield 3
    keep_at_most(ENTRIES_MAX)


def test_a_cache_of_few_keeps_few(memory: GuestMemory, few: int) -> None:
    iotlb = Iotlb()
    for page in range(10):
        iotlb.update(IOVA + 2 * page * PAGE, PAGE, USER, BOTH)
        assert len(iotlb) == min(page + 1, few)
        assert iotlb.place(memory, IOVA + 2 * page * PAGE, PAGE, READ) == USER


@pytest.mark.parametrize("most", [-1, 0, ENTRIES_MAX + 1])
def test_a_cache_without_a_bound_there_is_not(most: int) -> None:
    with pytest.raises(ValueError):
        keep_at_most(most)


def test_a_flood_of_misses_is_bounded(memory: GuestMemory) -> None:
    iotlb = Iotlb()
    assert iotlb.gather(memory, 0, END - 1, READ) is None
    assert len(iotlb.take_misses()) == 64


class Model:
    """What a cache knows, byte for byte of a page number: (page of the user's, access)."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int, int, int]] = []

    def update(self, first: int, pages: int, user: int, access: int) -> None:
        for i, (f, n, u, a) in enumerate(self.ranges):
            if access and (f, n, u) == (first, pages, user):
                self.ranges[i] = f, n, u, a | access
                return
        self.invalidate(first, pages)
        if access:
            self.ranges.append((first, pages, user, access))

    def invalidate(self, first: int, pages: int) -> None:
        self.ranges = [r for r in self.ranges if r[0] + r[1] <= first or first + pages <= r[0]]

    def find(self, page: int, access: int) -> int | None:
        for first, pages, user, allowed in self.ranges:
            if first <= page < first + pages and access & ~allowed == 0:
                return user + page - first
        return None


@pytest.mark.parametrize("seed", range(20))
def test_it_is_its_model(region: RamRegion, memory: GuestMemory, seed: int) -> None:
    chance = random.Random(seed)
    iotlb, model = Iotlb(), Model()
    for page in range(64):
        region.buffer[page * PAGE] = page
    for _ in range(400):
        first, pages = chance.randrange(40), chance.randrange(1, 6)
        match chance.randrange(4):
            case 0 | 1:
                user = chance.choice([first, chance.randrange(64 - pages)])
                access = chance.randrange(4)
                iotlb.update(IOVA + first * PAGE, pages * PAGE, USER + user * PAGE, access)
                model.update(first, pages, user, access)
            case 2:
                iotlb.invalidate(IOVA + first * PAGE, IOVA + (first + pages) * PAGE - 1)
                model.invalidate(first, pages)
            case _:
                access = chance.randrange(1, 4)
                wanted = [model.find(first + i, access) for i in range(pages)]
                found = iotlb.gather(memory, IOVA + first * PAGE, pages * PAGE, access)
                missing = [first + i for i, user in enumerate(wanted) if user is None]
                if missing:
                    assert found is None
                    misses = [(iova - IOVA) // PAGE for iova, _ in iotlb.take_misses()]
                    assert misses == missing
                else:
                    assert found is not None
                    data = b"".join(found)
                    assert [data[i * PAGE] for i in range(pages)] == wanted
        assert len(iotlb) == len(model.ranges)
