"""Requests that the driver is to see completed all at once, on rings of either layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.shm.guest import DATA, Guest, take
from tests.shm.packed_guest import PackedGuest
from vuproc.errors import RequestFinished
from vuproc.shm.ring import Ring

SIZE = 128
BATCH = 64
"""Requests after which a ring shows what is completed, whoever asks for it."""

WRITABLE = [(DATA, 8, True)]


class Split(Guest):
    """What the two have in common, under one name each."""

    def made(self) -> Ring:
        return self.ring()

    def post(self, head: int) -> None:
        self.submit(head, WRITABLE)

    def seen(self) -> list[int]:
        return [head for head, _ in self.reap()]


class Packed(PackedGuest):
    def made(self) -> Ring:
        return self.packed()

    def post(self, head: int) -> None:
        self.send(head, WRITABLE)

    def seen(self) -> list[int]:
        return [head for head, _ in self.back_again()]


LAYOUTS = pytest.mark.parametrize("layout", [Split, Packed])
AnyGuest = Callable[[int], "Split | Packed"]


@LAYOUTS
@pytest.mark.parametrize("before", [0, 1, BATCH - 10, BATCH - 9, BATCH - 1])
def test_they_are_shown_at_once_however_many_came_before(layout: AnyGuest, before: int) -> None:
    together = 10
    with layout(SIZE) as guest:
        ring = guest.made()
        for head in range(before + together):
            guest.post(head)
        requests = take(ring)
        for request in requests[:before]:
            request.finish()
        ring.finish_together(requests[before:])
        shown = len(guest.seen())
        assert shown in (0, before, before + together)
        ring.publish()
        assert shown + len(guest.seen()) == before + together


@LAYOUTS
def test_a_whole_batch_is_the_most(layout: AnyGuest) -> None:
    with layout(SIZE) as guest:
        ring = guest.made()
        for head in range(BATCH + 1):
            guest.post(head)
        requests = take(ring)
        with pytest.raises(ValueError, match="65 requests, of at most 64 at once"):
            ring.finish_together(requests)
        assert not any(request.finished for request in requests)
        requests[0].finish()
        ring.finish_together(requests[1:])
        assert len(guest.seen()) in (1, BATCH + 1)
        ring.publish()
        assert all(request.finished for request in requests)


@LAYOUTS
def test_one_that_is_finished_or_of_another_ring_finishes_none(layout: AnyGuest) -> None:
    with layout(8) as guest, layout(8) as other:
        mine, foreign = guest.made(), other.made()
        for head in range(3):
            guest.post(head)
            other.post(head)
        requests, strangers = take(mine), take(foreign)
        with pytest.raises(ValueError, match="a request of queue 3"):
            mine.finish_together([requests[0], strangers[0]])
        requests[2].finish()
        with pytest.raises(RequestFinished):
            mine.finish_together(requests)
        assert [request.finished for request in requests] == [False, False, True]
        mine.finish_together([])
        mine.finish_together(requests[:2])
        mine.publish()
        assert sorted(guest.seen()) == [0, 1, 2]
