"""How many requests of a ring are in flight, and for how long: from its record, which every worker
keeps, and nobody has to be asked.
"""

from __future__ import annotations

import os
import time

from vuproc.pool.history import History
from vuproc.spec.inflight import (
    INFLIGHT_PACKED_DESC,
    INFLIGHT_PACKED_HEADER,
    INFLIGHT_SPLIT_DESC,
    INFLIGHT_SPLIT_HEADER,
)
from vuproc.spec.ring_layout import PACKED, layout_of

_IN_FLIGHT = 1


class InFlight:
    """Looks at the records of one device's rings.

    A record says in which order requests were fetched and not when: the age of the oldest is the
    time since it was seen to be the oldest first, so it is too small by the time between two looks
    at most.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._oldest: dict[int, tuple[int, float]] = {}

    def look(self, queue: int) -> tuple[int, float]:
        """The requests in flight, and the seconds for which the oldest is known to have been."""
        orders = self._orders(queue)
        if not orders:
            self._oldest.pop(queue, None)
            return 0, 0.0
        # A counter that wraps around would take some thousand years.
        first, now = min(orders), time.monotonic()
        known = self._oldest.get(queue)
        if known is None or known[0] != first:
            known = self._oldest[queue] = first, now
        return len(orders), now - known[1]

    def _orders(self, queue: int) -> list[int]:
        setup = self._history.setup(queue)
        if setup is None or queue in self._history.broken:
            return []
        record = setup.inflight
        if record is None:
            if self._history.records is None:
                return []
            record = self._history.records.at(queue)
        packed = layout_of(self._history.state.features) is PACKED
        header = INFLIGHT_PACKED_HEADER if packed else INFLIGHT_SPLIT_HEADER
        entry = (INFLIGHT_PACKED_DESC if packed else INFLIGHT_SPLIT_DESC).size
        size = min(setup.size, record.queue_size)
        try:
            data = os.pread(record.fd.fileno(), entry * size, record.offset + header.size)
        except OSError:
            return []  # the front-end's file
        marks = data[::entry]
        found, at = [], marks.find(_IN_FLIGHT)
        while at >= 0:
            place = at * entry
            found.append(int.from_bytes(data[place + 8 : place + 16], "little"))
            at = marks.find(_IN_FLIGHT, at + 1)
        return found
