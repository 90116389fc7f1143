"""Catalogue rows A53 to A55: what an IOMMU says that is not so, or does not say at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.conformance.checks import AT_ONCE_S, BROKEN_WITHIN_S, LAYOUTS, SECTOR, until, works
from tests.conformance.conftest import DISK
from tests.conformance.forgetful import KEPT, Forgetful
from vuproc.shm.iotlb import ENTRIES_MAX
from vuproc.spec.iotlb import ACCESS_MAX, IOTLB_PAGE, Access, IotlbType
from vuproc.spec.virtio import Status
from vuproc.testing.errors import NoCompletion, Refused
from vuproc.testing.guest import Guest
from vuproc.testing.serve import Served, serve

FAR = 1 << 50
"""An I/O virtual address that is nobody's."""
MORE = 16
"""Translations of a flood, above those that are kept."""
AT_A_TIME = 8
"""Pages of a request: few of those that are kept."""
LONG = os.environ.get("VUPROC_LONG", "") not in ("", "0")
"""A flood of as many as any worker keeps. Else it is a disk that keeps few."""
FLOOD_BOUND_S = 600 if LONG else 120


@pytest.fixture(scope="module")
def translated() -> Iterator[Served]:
    with serve(DISK, file={"iommu": True}) as served:
        yield served


def behind(served: Served, *, packed: bool = False) -> Guest:
    return Guest(served.socket, queues=2, iommu=True, packed=packed, timeout_s=AT_ONCE_S)


@pytest.mark.parametrize(
    ("size", "user_addr"),
    [(0, 0), (1 << 63, 1 << 63), ((1 << 64) - 1, 0), (IOTLB_PAGE, 1 << 40)],
)
def test_a53_a_translation_that_cannot_be_is_refused(
    translated: Served, size: int, user_addr: int
) -> None:
    with behind(translated) as guest:
        with pytest.raises(Refused):
            guest.front_end.iotlb(
                IotlbType.UPDATE, FAR, size, user_addr=user_addr, access=int(Access.READ)
            )
        works(guest)


@LAYOUTS
def test_a54_an_address_that_is_denied_breaks_its_ring_alone(
    translated: Served, packed: bool
) -> None:
    with behind(translated, packed=packed) as guest:
        queue = guest.queues[0]
        queue.ring.add([(FAR, 512, False), (FAR + 512, 1, True)])
        queue.ring.publish()
        queue.kick()
        assert queue.err_bell.wait(BROKEN_WITHIN_S)
        until(lambda: bool(guest.status() & Status.NEEDS_RESET))
        works(guest, 1)
        guest.reset()
        works(guest)


@LAYOUTS
def test_a54_a_page_that_is_not_for_writing_breaks_its_ring(
    translated: Served, packed: bool
) -> None:
    with behind(translated, packed=packed) as guest:
        assert guest.iommu is not None
        block = guest.ram.allocate(IOTLB_PAGE, IOTLB_PAGE)
        iova = guest.iommu.map(block.user_addr, IOTLB_PAGE, int(Access.READ))
        queue = guest.queues[0]
        queue.ring.add([(iova, 16, False), (iova + 16, 512, True)])
        queue.ring.publish()
        queue.kick()
        assert queue.err_bell.wait(BROKEN_WITHIN_S)
        assert bytes(block.view) == bytes(IOTLB_PAGE)
        works(guest, 1)


def test_a54_a_page_that_is_taken_away_again_and_again_breaks_its_ring(translated: Served) -> None:
    """Who answers with less than was asked for is asked again, but not for ever."""
    with behind(translated) as guest:
        assert guest.iommu is not None
        block = guest.ram.allocate(IOTLB_PAGE, IOTLB_PAGE)
        guest.iommu.map_at(FAR, block.user_addr, 0)
        guest.iommu.grants = int(Access.READ)
        queue = guest.queues[0]
        queue.ring.add([(FAR, 512, True)])
        queue.ring.publish()
        queue.kick()
        assert queue.err_bell.wait(BROKEN_WITHIN_S)
        guest.iommu.grants = None
        works(guest, 1)


def test_a55_misses_that_nobody_answers_hold_up_nobody_else(translated: Served) -> None:
    with behind(translated) as guest:
        assert guest.iommu is not None
        works(guest)
        guest.iommu.answers = False
        asked = guest.iommu.misses.total()
        token = guest.submit(0, [bytes(16)], [512, 1])
        guest.iommu.wait_for_misses(asked + 1)
        with pytest.raises(NoCompletion):
            guest.wait(token, 0.1)
        # Its ring stops, and nothing is in flight: nobody waits for an answer.
        began = time.monotonic()
        guest.stop_queue(0)
        assert time.monotonic() - began < AT_ONCE_S
        guest.iommu.answers = True
        works(guest, 1)


@pytest.mark.timeout(FLOOD_BOUND_S)
def test_a55_a_flood_of_translations_is_bounded() -> None:
    """What is too much is forgotten, and asked for again when it is needed."""
    kept, keys = (ENTRIES_MAX if LONG else KEPT), {"iommu": True}
    few = serve(Forgetful, file=keys, ram="16MiB", queues=2)
    with serve(DISK, file=keys) if LONG else few as served, behind(served) as guest:
        assert guest.iommu is not None
        works(guest)
        user = guest.ram.allocate(IOTLB_PAGE, IOTLB_PAGE).user_addr
        pages = [FAR + page * IOTLB_PAGE for page in range(kept + MORE)]
        for page in pages:
            guest.iommu.map_at(page, user)
            guest.front_end.iotlb(
                IotlbType.UPDATE, page, IOTLB_PAGE, user_addr=user, access=ACCESS_MAX
            )
        works(guest)
        read_into(guest, pages)
        forgotten = sum(guest.iommu.misses[page] > 0 for page in pages)
        assert MORE <= forgotten < len(pages)


def read_into(guest: Guest, pages: Sequence[int]) -> None:
    """A sector into each of these pages, some at a time."""
    assert guest.iommu is not None
    block = guest.ram.allocate(IOTLB_PAGE, IOTLB_PAGE)
    header = guest.iommu.map(block.user_addr, IOTLB_PAGE)
    block.view[:16] = bytes(16)
    queue = guest.queues[0]
    for at in range(0, len(pages), AT_A_TIME):
        sectors = [(page, SECTOR, True) for page in pages[at : at + AT_A_TIME]]
        queue.ring.add([(header, 16, False), *sectors, (header + 16, 1, True)])
        queue.ring.publish()
        queue.kick()
        while not (done := queue.ring.reap()):
            assert queue.ring.arm() or queue.call_bell.wait(AT_ONCE_S)
        ((_, written),) = done
        assert written == len(sectors) * SECTOR + 1


def test_a55_a_connection_that_ends_amid_misses(translated: Served) -> None:
    guest = behind(translated)
    try:
        assert guest.iommu is not None
        guest.iommu.answers = False
        guest.submit(0, [bytes(16)], [512, 1])
        guest.submit(1, [bytes(16)], [512, 1])
    finally:
        guest.close()
    with behind(translated) as other:
        works(other)


def test_a53_rings_that_no_iommu_has_put_anywhere_wait(translated: Served) -> None:
    with Guest(translated.socket, iommu=True, start=False, timeout_s=AT_ONCE_S) as guest:
        assert guest.iommu is not None
        guest.setup()
        queue = guest.make_queue(0)
        guest.iommu.forget(queue.desc, queue.block.size)
        guest.configure_queue(queue)
        guest.kick_queue(queue)
        guest.enable_queue(0)
        guest.iommu.wait_for_misses(1)
        moved = queue.desc - queue.block.user_addr
        for at in range(0, queue.block.size, IOTLB_PAGE):
            guest.iommu.map_at(queue.desc + at, queue.desc + at - moved)
        works(guest)
