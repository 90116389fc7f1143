"""The split ring while another process rewrites it: whatever is read, memory outside is safe."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests.shm.companion import beside
from tests.shm.guest import F_EVENT_IDX, F_INDIRECT, RING, Guest, places
from vuproc.errors import RingError
from vuproc.shm.request import Request

RUN_S = 1.5
BOUND_S = 40.0
"""A busy machine gets this long to let both processes at the ring by turns."""
TABLE = RING + 0x30000


@pytest.mark.timeout(120)
@pytest.mark.parametrize("features", [F_INDIRECT, F_INDIRECT | F_EVENT_IDX])
def test_c23_b26_fields_that_change_while_they_are_read(features: int) -> None:
    causes: Counter[str] = Counter()
    served = 0

    def handle(request: Request) -> None:
        nonlocal served
        served += 1
        assert sum(part.nbytes for part in request.readable_segments) == request.readable_total
        assert sum(part.nbytes for part in request.writable_segments) == request.writable_total
        assert request.readable_total + request.writable_total <= 16 * 0xFFFF
        data = request.read(1 << 16)
        assert len(data) == min(request.readable_total, 1 << 16)
        request.write(data)
        if request.writable_total:
            request.put(-1, b"\xff")

    def on_error(request: Request, error: BaseException) -> None:
        raise error

    with Guest(8) as guest:
        places_of = guest.size, places(RING, 1)[0][0], RING, places(TABLE, 1)[0][0]
        with beside(guest, "flipper.py", *places_of):
            begin = time.monotonic()
            ring = guest.ring(features, chain_limit=16)
            while (spent := time.monotonic() - begin) < BOUND_S:
                if spent > RUN_S and served > 200 and len(causes) >= 5:
                    break
                try:
                    ring.drain(handle, on_error, 64)
                    ring.arm()
                except RingError as error:
                    causes[error.cause] += 1
                    ring = guest.ring(features, chain_limit=16)
        assert guest.intact()
    # It was a race indeed: requests went through and the ring broke for many a reason.
    assert served > 200
    assert len(causes) >= 5, causes
