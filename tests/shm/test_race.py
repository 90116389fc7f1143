"""A ring while another process rewrites it: whatever is read, memory outside is safe."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from tests.shm.companion import beside
from tests.shm.flips import TABLES, FlippedPacked
from tests.shm.guest import (
    F_EVENT_IDX,
    F_INDIRECT,
    INDIRECT,
    NEXT,
    RING,
    WRITE,
    Guest,
    fail,
    places,
)
from tests.shm.packed_guest import AVAIL, USED
from vuproc.errors import RingError
from vuproc.shm.request import Request
from vuproc.shm.ring import Ring

RUN_S = 1.5
BOUND_S = 40.0
"""A busy machine gets this long to let both processes at the ring by turns."""
TABLE = RING + 0x30000


class Device:
    """Answers requests, and counts them."""

    def __init__(self) -> None:
        self.served = 0

    def handle(self, request: Request) -> None:
        self.served += 1
        assert sum(part.nbytes for part in request.readable_segments) == request.readable_total
        assert sum(part.nbytes for part in request.writable_segments) == request.writable_total
        assert request.readable_total + request.writable_total <= 16 * 0xFFFF
        data = request.read(1 << 16)
        assert len(data) == min(request.readable_total, 1 << 16)
        request.write(data)
        if request.writable_total:
            request.put(-1, b"\xff")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("features", [F_INDIRECT, F_INDIRECT | F_EVENT_IDX])
def test_c23_b26_fields_that_change_while_they_are_read(features: int) -> None:
    causes: Counter[str] = Counter()
    device = Device()
    with Guest(8) as guest:
        places_of = guest.size, places(RING, 1)[0][0], RING, places(TABLE, 1)[0][0]
        with beside(guest, "flipper.py", *places_of):
            begin = time.monotonic()
            ring = guest.ring(features, chain_limit=16)
            while (spent := time.monotonic() - begin) < BOUND_S:
                if spent > RUN_S and device.served > 200 and len(causes) >= 5:
                    break
                try:
                    ring.drain(device.handle, fail, 64)
                    ring.arm()
                except RingError as error:
                    causes[error.cause] += 1
                    ring = guest.ring(features, chain_limit=16)
        assert guest.intact()
    # It was a race indeed: requests went through and the ring broke for many a reason.
    assert device.served > 200
    assert len(causes) >= 5, causes


def show(stage: FlippedPacked, ring: Ring) -> None:
    """Make the slot that is looked at next available, whatever it holds by now."""
    flags = stage.choose.choice((0, 0, 0, NEXT, WRITE, WRITE, INDIRECT))
    slot, wrap = ring.next_avail & 0x7FFF, ring.next_avail >> 15
    at = stage.guest.desc + 16 * slot + 14
    stage.guest.set_word(at, flags | (AVAIL if wrap else USED))


def successor(stage: FlippedPacked, ring: Ring, causes: Counter[str]) -> Ring:
    """A worker dies, and whoever comes next has the record, or begins anew if it is spoilt."""
    ring.stop(keep=True)
    try:
        return stage.restart()
    except RingError as error:
        causes[error.cause] += 1
        return stage.start()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("features", [F_INDIRECT, F_INDIRECT | F_EVENT_IDX])
def test_c37_c23_a36_a_packed_ring_and_its_record_that_change_while_they_are_read(
    features: int,
) -> None:
    causes: Counter[str] = Counter()
    device = Device()
    with FlippedPacked(random.Random(), features) as stage:
        record = stage.record
        places_of = stage.guest.size, places(RING, 1)[0][0], RING, places(TABLES, 1)[0][0]
        where = record.fd, record.offset, record.end - record.offset
        with beside(stage.guest, "packed_flipper.py", *places_of, *where, fds=(record.fd,)):
            begin = time.monotonic()
            ring = stage.start()
            while (spent := time.monotonic() - begin) < BOUND_S:
                if spent > RUN_S and device.served > 200 and len(causes) >= 5:
                    break
                try:
                    for _ in range(10):
                        show(stage, ring)
                        ring.drain(device.handle, fail, 64)
                        ring.arm()
                except RingError as error:
                    causes[error.cause] += 1
                    ring = stage.start()
                else:
                    ring = successor(stage, ring, causes)
        assert stage.intact()
    assert device.served > 200
    assert len(causes) >= 5, causes
