# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Driver side of a packed virtqueue (virtio 1.3, section 2.8): see `DriverRing`.

The other half of the protocol in `vuproc.shm.packed`.

A position in the ring is a slot and a wrap counter, which turns each time the ring's end is passed.
As a number it is the slot in bits 0 to 14 and the counter in bit 15, as in the event areas.
"""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from vuproc.shm.atomics cimport (
    vu_fence_full,
    vu_load_acquire16,
    vu_load_relaxed16,
    vu_load_relaxed32,
    vu_store_relaxed16,
    vu_store_relaxed32,
    vu_store_release16,
)
from vuproc.testing.ring cimport (
    DESC_INDIRECT, DESC_NEXT, DESC_WRITE, MAX_SIZE, DriverRing, Segment
)

from vuproc.testing.errors import RingFull


cdef enum:
    DESC_AVAIL = 1 << 7            # is the wrap counter when the driver writes the descriptor
    DESC_USED = 1 << 15            # is its opposite then; both are it when the device does
    EVENT_ENABLE = 0               # flags of an event area: notify always, never,
    EVENT_DISABLE = 1
    EVENT_DESC = 2                 # or when the descriptor at off_wrap is reached (EVENT_IDX)
    EVENT_FLAGS = 3                # the bits of these; the others are reserved
    WRAP_BIT = 15                  # of a position
    START = 0x8000                 # the first slot, under a wrap counter of 1


def packed_layout(size: int) -> tuple[int, int, int, int]:
    """Byte offsets of descriptors, driver and device event area from the ring's start; its length.

    Alignment as virtio asks (16, 4, 4), and no event area in a cache line with anything else.
    """
    driver_event = (16 * size + 63) & ~63
    return 0, driver_event, driver_event + 64, driver_event + 68


@cython.final
cdef class PackedDriverRing(DriverRing):
    """The driver's view of a packed ring in `memory` at the byte offsets of its three areas.

    memory: a writable, contiguous buffer. base: where the ring starts, as SET_VRING_BASE has it:
    the position of the next available descriptor in the lower 16 bits and that of the next used one
    in the upper; descriptors from the second to the first are somebody else's and stay in flight.
    event_idx: EVENT_IDX (feature bit 29) was acked. Raises ValueError for a size not in 1 to 32768,
    a base that is in no such ring, or areas outside the buffer.
    """

    def __cinit__(self, object memory, unsigned int size, *, size_t desc, size_t driver_event,
                  size_t device_event, unsigned int base=START | START << 16, bint event_idx=False):
        cdef char *start
        cdef unsigned int i, flying
        if size == 0 or size > MAX_SIZE:
            raise ValueError(f"ring size {size} is not in 1..{MAX_SIZE}")
        areas = (desc, 16 * size, 16), (driver_event, 4, 4), (device_event, 4, 4)
        start = self._attach(memory, size, event_idx, areas)
        # SAFETY: the areas were just checked against the buffer, which self._memory exports.
        self._desc = <PackedDesc *>(start + desc)
        self._driver_event = start + driver_event
        self._device_event = start + device_event
        self._name = "buffer id"
        self._next_id = <uint16_t *>calloc(size, sizeof(uint16_t))
        if self._next_id == NULL:
            raise MemoryError
        # The last id comes first, so that no device can take ids for slots.
        for i in range(1, size):
            self._next_id[i] = <uint16_t>(i - 1)
        self._free_id = <uint16_t>(size - 1)
        self._avail = self._held = self._place(base & 0xffff, "available")
        self._used = self._place(base >> 16, "used")
        flying = self.distance(self._used, self._avail)
        if flying > size:
            raise ValueError(f"base {base:#x}: {flying} descriptors in flight in a ring of {size}")
        self._free = size - flying

    def __dealloc__(self):
        free(self._next_id)

    # The hot half, without the GIL.

    cdef int put(self, const Segment *chain, unsigned int count) noexcept nogil:
        cdef unsigned int i
        cdef uint16_t id, flags
        if count == 0 or count > self._free:
            return -1
        id = self.take_id(count)
        for i in range(count):
            flags = <uint16_t>chain[i].flags
            if i + 1 < count:
                flags |= DESC_NEXT
            self.write_next(chain[i].addr, chain[i].len, id, flags)
        return id

    cdef int put_indirect(
        self, const Segment *chain, unsigned int count, char *table, uint64_t address
    ) noexcept nogil:
        cdef PackedDesc entry
        cdef unsigned int i
        cdef uint16_t id
        if self._free == 0:
            return -1
        entry.id = 0
        for i in range(count):
            # A table is read from its start to its end: no NEXT in there, and no id.
            entry.addr = chain[i].addr
            entry.len = chain[i].len
            entry.flags = <uint16_t>chain[i].flags
            # SAFETY: i < count and the table holds 16 * count bytes, wherever it begins.
            memcpy(table + 16 * i, &entry, 16)
        id = self.take_id(1)
        self.write_next(address, 16 * count, id, DESC_INDIRECT)
        return id

    cdef bint publish_entries(self) noexcept nogil:
        cdef Place event
        cdef uint16_t flags, off_wrap
        cdef Place old = self._held
        cdef unsigned int new = self._unpublished
        if new == 0:
            return False
        # Release: pairs with the device's acquire load of the flags at its next position. Whatever
        # else was written comes before: the rest of this descriptor, and the later ones whole. The
        # device does not get to those without this one.
        # SAFETY: slots are below size, as advance() and _place() make them.
        vu_store_release16(&self._desc[old.slot].flags, self._held_flags)
        self._held = self._avail
        self._unpublished = 0
        # Full fence between our store of the flags and the load of the device's event area: pairs
        # with the device's fence between its store there and its re-read of the flags. One of the
        # two sees the other.
        vu_fence_full()
        flags = vu_load_acquire16(self._device_event + 2) & EVENT_FLAGS
        if flags == EVENT_ENABLE or flags == EVENT_DISABLE or not self.event_idx:
            return flags == EVENT_ENABLE
        if flags != EVENT_DESC:
            return False
        # Acquire above: off_wrap is no older than the flags which say that it counts.
        off_wrap = vu_load_relaxed16(self._device_event)
        event.slot = off_wrap & (START - 1)
        event.wrap = off_wrap >> WRAP_BIT
        return event.slot < self.size and self.distance(old, event) < new

    cdef int reap_one(self, uint32_t *name, uint32_t *length) noexcept nogil:
        cdef PackedDesc *desc
        cdef uint16_t flags
        cdef unsigned int count
        if not self.is_used(self._used):
            return 0
        # SAFETY: slots are below size, as advance() and _place() make them.
        desc = &self._desc[self._used.slot]
        flags = vu_load_relaxed16(&desc.flags)
        name[0] = vu_load_relaxed16(&desc.id)
        # A length counts in a descriptor that says that something was written (2.8.4).
        length[0] = vu_load_relaxed32(&desc.len) if flags & DESC_WRITE else 0
        if name[0] >= self.size or self._count[name[0]] == 0:
            return -1
        count = self._count[name[0]]
        self._count[name[0]] = 0
        self._free += count
        self._next_id[name[0]] = self._free_id
        self._free_id = <uint16_t>name[0]
        # One used descriptor a chain, however long: the device skips the slots of the others.
        self.advance(&self._used, count)
        return 1

    cdef bint used_waits(self) noexcept nogil:
        return self.is_used(self._used)

    cdef bint arm_calls(self) noexcept nogil:
        cdef uint32_t event = EVENT_ENABLE
        if self.event_idx:
            event = self._used.slot | <uint32_t>self._used.wrap << WRAP_BIT | EVENT_DESC << 16
        # One store, so that the device never sees the flags with the place of another time.
        vu_store_relaxed32(self._driver_event, event)
        # Full fence: pairs with the device's fence between its store of a used descriptor's flags
        # and its load of this area. Either it sees our wish and calls, or we see them here.
        vu_fence_full()
        return self.used_waits()

    cdef void disarm_calls(self) noexcept nogil:
        vu_store_relaxed16(self._driver_event + 2, EVENT_DISABLE)

    cdef uint32_t base_now(self) noexcept nogil:
        cdef uint32_t position = self._used.slot | <uint32_t>self._used.wrap << WRAP_BIT
        return position | position << 16

    cdef void begin_here(self) noexcept nogil:
        # Every slot, from the used position on, as the device left it the last time round: used
        # under the opposite of the counter with which it is reached next.
        cdef Place place = self._used
        cdef unsigned int i
        for i in range(self.size):
            # SAFETY: slots are below size, as advance() and _place() make them.
            vu_store_relaxed16(
                &self._desc[place.slot].flags, 0 if place.wrap else DESC_AVAIL | DESC_USED
            )
            self.advance(&place, 1)

    cdef uint16_t take_id(self, unsigned int count) noexcept nogil:
        """A free id, for a chain of `count` descriptors. There is one if there is a descriptor."""
        cdef uint16_t id = self._free_id
        self._free_id = self._next_id[id]
        self._count[id] = <uint16_t>count
        self._free -= count
        return id

    cdef void write_next(
        self, uint64_t addr, uint32_t length, uint16_t id, uint16_t flags
    ) noexcept nogil:
        """Write the next descriptor and make it available, but for the first one not published."""
        # SAFETY: slots are below size, as advance() and _place() make them.
        cdef PackedDesc *desc = &self._desc[self._avail.slot]
        desc.addr = addr
        desc.len = length
        desc.id = id
        flags |= DESC_AVAIL if self._avail.wrap else DESC_USED
        if self._unpublished == 0:
            self._held_flags = flags
        else:
            vu_store_relaxed16(&desc.flags, flags)
        self._unpublished += 1
        self.advance(&self._avail, 1)

    cdef void advance(self, Place *place, unsigned int count) noexcept nogil:
        """Move a place on by `count` slots, at most a whole ring."""
        cdef unsigned int slot = place.slot + count
        if slot >= self.size:
            slot -= self.size
            place.wrap ^= 1
        place.slot = <uint16_t>slot

    cdef unsigned int distance(self, Place start, Place end) noexcept nogil:
        """How many slots `end` lies behind `start`: 0 to 2 * size - 1, after which wraps repeat."""
        cdef unsigned int slots = end.slot + 2 * self.size - start.slot
        if start.wrap != end.wrap:
            slots += self.size
        return slots % (2 * self.size)

    cdef bint is_used(self, Place place) noexcept nogil:
        """Whether the device has written a used descriptor there."""
        cdef uint16_t expected = DESC_AVAIL | DESC_USED if place.wrap else 0
        # Acquire: pairs with the device's release store of a used descriptor's flags. Its id and
        # length, and the data, come after.
        # SAFETY: slots are below size, as advance() and _place() make them.
        return vu_load_acquire16(&self._desc[place.slot].flags) & (
            DESC_AVAIL | DESC_USED
        ) == expected

    cdef Place _place(self, unsigned int position, str name) except *:
        cdef Place place
        place.slot = position & (START - 1)
        place.wrap = <uint16_t>(position >> WRAP_BIT)
        if position > 0xffff or place.slot >= self.size:
            raise ValueError(f"{name} position {position:#x} is not in a ring of {self.size}")
        return place

    # What a hostile driver does.

    def offer_descriptors(self, descriptors, id: int | None = None) -> int:
        """Write (guest address, length, flags) at the next positions; the buffer id they have.

        They are one chain if their flags say so; those which make them available are added. The
        device sees them after `publish`. id: None takes a free one, which `reap` knows; any other
        is written as it is and stands for nothing that is in flight. Raises RingFull.
        """
        cdef list given = list(descriptors)
        cdef unsigned int count = <unsigned int>len(given)
        cdef uint16_t written
        if count == 0 or count > self._free:
            raise RingFull(count, self._free)
        if id is None:
            written = self.take_id(count)
        else:
            written = id
            self._free -= count
        for address, length, flags in given:
            self.write_next(address, length, written, flags)
        return written

    def set_descriptor(
        self, slot: int, address: int, length: int, id: int = 0, flags: int = 0
    ) -> None:
        """Store one descriptor as given, its flags last, unchecked but for `slot`."""
        cdef PackedDesc *desc
        if not 0 <= slot < self.size:
            raise IndexError(slot)
        # SAFETY: slot was checked against size.
        desc = &self._desc[<unsigned int>slot]
        desc.addr = address
        desc.len = length
        desc.id = id
        # Release: as in publish_entries().
        vu_store_release16(&desc.flags, flags)

    def descriptor(self, slot: int) -> tuple[int, int, int, int]:
        """What is in `slot`, the driver's or the device's: (address, length, id, flags)."""
        cdef PackedDesc *desc
        cdef uint16_t flags
        if not 0 <= slot < self.size:
            raise IndexError(slot)
        # SAFETY: slot was checked against size.
        desc = &self._desc[<unsigned int>slot]
        # Acquire: as in is_used().
        flags = vu_load_acquire16(&desc.flags)
        return desc.addr, vu_load_relaxed32(&desc.len), vu_load_relaxed16(&desc.id), flags

    @property
    def avail_position(self) -> int:
        """Where the next descriptor is written; a jump leaves what was not published behind."""
        return self._avail.slot | self._avail.wrap << WRAP_BIT

    @avail_position.setter
    def avail_position(self, unsigned int position):
        self._avail = self._held = self._place(position, "available")
        self._unpublished = 0

    @property
    def used_position(self) -> int:
        """Where the next used descriptor is expected."""
        return self._used.slot | self._used.wrap << WRAP_BIT

    @used_position.setter
    def used_position(self, unsigned int position):
        self._used = self._place(position, "used")

    @property
    def driver_event(self) -> tuple[int, int]:
        """Our event area, (off_wrap, flags): which calls we want."""
        return vu_load_relaxed16(self._driver_event), vu_load_relaxed16(self._driver_event + 2)

    @driver_event.setter
    def driver_event(self, event):
        off_wrap, flags = event
        vu_store_relaxed16(self._driver_event, off_wrap)
        vu_store_relaxed16(self._driver_event + 2, flags)

    @property
    def device_event(self) -> tuple[int, int]:
        """The device's event area: which kicks it wants. Assigning is what no honest driver does."""
        return vu_load_relaxed16(self._device_event), vu_load_relaxed16(self._device_event + 2)

    @device_event.setter
    def device_event(self, event):
        off_wrap, flags = event
        vu_store_relaxed16(self._device_event, off_wrap)
        vu_store_relaxed16(self._device_event + 2, flags)
