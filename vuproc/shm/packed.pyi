from typing import final

from vuproc.shm.counters import QueueCounters
from vuproc.shm.iotlb import Iotlb
from vuproc.shm.memory import GuestMemory
from vuproc.shm.packed_record import PackedRecord
from vuproc.shm.ring import Ring

@final
class PackedRing(Ring):
    """The device side of a packed virtqueue (virtio 1.3, section 2.8).

    A request's `head` is its number in the record, not the driver's buffer id.
    """

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
        record: PackedRecord | None = None,
        fresh: bool = False,
        iotlb: Iotlb | None = None,
    ) -> None:
        """Take up a ring at front-end user addresses: descriptors (16n bytes), and the driver's and
        the device's event area (4 bytes each) as `avail` and `used`.

        `size` is any number up to 32768. `base` has the next available place in its low half and
        the next used one in its high half, bit 15 of each the wrap counter; a high half of 0 is the
        low one's, and 0 altogether also a fresh ring: the ring tells. None goes on where the
        record's last ring ended, or begins anew. Of `features`, INDIRECT_DESC and EVENT_IDX matter.
        Indirect tables and whole chains may have max(size, chain_limit) descriptors. Raises
        RingError on a bad size, base or alignment, MemoryFault if memory does not cover the ring.

        With a `record` of version 1 the ring recovers: the positions come from the record, `base`
        is ignored. `fresh` initialises a record whatever is in it. Raises RingError if the record
        contradicts itself or the ring, ValueError if it is of another queue size.

        `iotlb`: addresses in descriptors are I/O virtual, and this knows what they are; the ring's
        own stay user addresses.
        """
