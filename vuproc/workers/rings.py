"""The native ring and the in-flight record of each layout."""

from __future__ import annotations

from vuproc.shm.inflight import SplitRecord
from vuproc.shm.split import SplitRing
from vuproc.spec.ring_layout import SPLIT, RingLayout

AnyRing = SplitRing
AnyRecord = SplitRecord

RINGS: dict[RingLayout, type[AnyRing]] = {SPLIT: SplitRing}
RECORDS: dict[RingLayout, type[AnyRecord]] = {SPLIT: SplitRecord}
