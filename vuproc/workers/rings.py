"""The native ring of each layout, on its in-flight record."""

from __future__ import annotations

from functools import partial

from vuproc.shm.counters import QueueCounters
from vuproc.shm.inflight import SplitRecord
from vuproc.shm.iotlb import Iotlb
from vuproc.shm.memory import GuestMemory
from vuproc.shm.packed import PackedRing
from vuproc.shm.packed_record import PackedRecord
from vuproc.shm.split import SplitRing
from vuproc.spec.ring_layout import PACKED, RingLayout
from vuproc.vhost_user.effects import Inflight, RingSetup

AnyRing = SplitRing | PackedRing


def make_ring(
    layout: RingLayout,
    setup: RingSetup,
    inflight: Inflight,
    memory: GuestMemory,
    *,
    features: int,
    chain_limit: int,
    counters: QueueCounters | None,
    iotlb: Iotlb | None,
) -> AnyRing:
    """The ring that `setup` describes, on its record; raises `RingError` or `MemoryFault`.

    iotlb: what the addresses in its descriptors are; None: guest-physical.
    """
    place = inflight.fd.fileno(), inflight.offset, setup.size
    make = (
        partial(PackedRing, record=PackedRecord(*place))
        if layout is PACKED
        else partial(SplitRing, record=SplitRecord(*place))
    )
    return make(
        setup.index,
        setup.size,
        memory,
        setup.desc,
        setup.avail,
        setup.used,
        setup.base,
        features=features,
        chain_limit=chain_limit,
        counters=counters,
        iotlb=iotlb,
    )
