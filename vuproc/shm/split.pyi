from typing import final

from vuproc.shm.counters import QueueCounters
from vuproc.shm.inflight import SplitRecord
from vuproc.shm.iotlb import Iotlb
from vuproc.shm.memory import GuestMemory
from vuproc.shm.ring import Ring

@final
class SplitRing(Ring):
    """The device side of a split virtqueue (virtio 1.2, section 2.7)."""

    def __init__(
        self,
        queue: int,
        size: int,
        memory: GuestMemory,
        desc: int,
        avail: int,
        used: int,
        base: int | None,
        *,
        features: int,
        chain_limit: int,
        counters: QueueCounters | None = None,
        record: SplitRecord | None = None,
        fresh: bool = False,
        iotlb: Iotlb | None = None,
    ) -> None:
        """Take up a ring at front-end user addresses (desc 16n, avail 6+2n, used 6+8n bytes).

        `size` is a power of two up to 32768. `base` is the next avail index; None resumes at the
        live used.idx. Of `features`, INDIRECT_DESC and EVENT_IDX matter. Indirect tables and whole
        chains may have max(size, chain_limit) descriptors. Raises RingError on a bad size or
        alignment, MemoryFault if memory does not cover the ring.

        With a `record` of version 1 the ring recovers: the position comes from the record and the
        live used.idx, `base` is ignored. A record of version 0 is initialised at `base`; None
        then means where the record's last ring stopped. Give the base of the front-end until the
        first ring on it was made, and None when a worker is replaced. `fresh` initialises
        a record whatever is in it. Raises RingError if the record and the ring contradict each
        other, ValueError if the record is of another queue size.

        `iotlb`: addresses in descriptors are I/O virtual, and this knows what they are; the ring's
        own stay user addresses.
        """
