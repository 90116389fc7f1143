# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The near end of a packed virtqueue (virtio 1.3, section 2.8): where it is, and what is fetched."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from vuproc.shm.ahead cimport AHEAD, FAR_AHEAD, prefetch_buffer
from vuproc.shm.atomics cimport (
    vu_load_acquire16,
    vu_load_acquire64,
    vu_load_relaxed16,
    vu_load_relaxed64,
    vu_prefetch,
)
from vuproc.shm.counters cimport QueueCounters
from vuproc.shm.fetching cimport FREE, TAKEN, find_near, near
from vuproc.shm.iotlb cimport Iotlb
from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.packed_record cimport (
    PackedEntry,
    PackedRecord,
    Slot,
    note_descriptor,
    note_heads,
    note_out,
    note_taken_out,
    place_of,
)
from vuproc.shm.packed_walk cimport (
    Taken,
    walk_copies,
    walk_near_slots,
    walk_near_table,
    walk_slots,
)
from vuproc.shm.place cimport (
    F_AVAIL,
    F_USED,
    FIRST_PLACE,
    advanced,
    available_bits,
    gone_back,
    is_available,
    slot_of,
    slots_between,
)
from vuproc.shm.request cimport Chain
from vuproc.shm.ring cimport MAX_SIZE, Ring
from vuproc.shm.walk cimport DESC_INDIRECT, DESC_NEXT, DESC_WRITE, find_first

from vuproc.errors import MemoryFault, RingError

cdef enum:
    # Slots that `backlog` looks at.
    LOOK_AHEAD = 1024


cdef inline void enter(
    PackedFetching ring, uint16_t last, uint16_t count, uint64_t rest, Chain *chain
) noexcept nogil:
    # The chain at `avail` is fetched: so many slots, whose copies are in the entries from `free` on
    # to `last`; rest: the second half of its last descriptor.
    # SAFETY: there were as many free entries as it has slots.
    cdef uint16_t head = ring.free, free = ring.slots[last].next
    cdef uint64_t place = place_of(ring.slots[head].next, last, count)
    cdef uint64_t own = place | rest >> 32 << 48
    memcpy(ring.slots + head, &own, sizeof(Slot))
    chain.head = head
    chain.descriptors = count
    # The record first: whoever comes after us must find what we are going to have.
    note_taken_out(ring.log, ring.entries + head, place, ring.counter, free)
    ring.free = free
    ring.counter += 1
    ring.marks[head] = TAKEN
    ring.avail = advanced(ring.avail, count, <uint32_t>ring.size)
    ring.room -= count
    ring.chain_slots = count
    ring.last_avail += 1
    ring.flying += 1
    if ring.followed:
        ring.enter_followed(chain)


cdef inline void look_ahead(PackedFetching ring, bint to_fill) noexcept nogil:
    # In bytes from the first slot on: it runs for each request.
    cdef size_t end = 16 * <size_t>ring.size
    cdef size_t at = 16 * <size_t>slot_of(ring.avail), far, later
    cdef uint16_t bits = available_bits(ring.avail)
    # SAFETY: fewer slots on than the ring has, which `room` does not exceed; and round its end.
    if ring.room > FAR_AHEAD:
        far = at + 16 * FAR_AHEAD
        vu_prefetch(ring.desc + (far - end if far >= end else far))
        later = at + 16 * AHEAD
        if later >= end:
            later -= end
            bits ^= F_AVAIL | F_USED
        if vu_load_relaxed16(ring.desc + later + FLAGS_AT) & (F_AVAIL | F_USED) == bits:
            at = later
    # What a slot has had before does no harm.
    prefetch_buffer(
        near(ring, vu_load_relaxed64(ring.desc + at)),
        <uint32_t>vu_load_relaxed64(ring.desc + at + 8),
        to_fill,
    )


cdef class PackedFetching(Ring):
    """A packed virtqueue as far as its descriptors are read."""

    def __cinit__(
        self,
        int queue,
        object size,
        GuestMemory memory not None,
        uint64_t desc,
        uint64_t avail,
        uint64_t used,
        object base,
        *,
        uint64_t features,
        Py_ssize_t chain_limit,
        QueueCounters counters=None,
        PackedRecord record=None,
        bint fresh=False,
        Iotlb iotlb=None,
    ):
        if not 0 < size <= MAX_SIZE:
            raise RingError(queue, 0, f"size {size} is not in 1 to {MAX_SIZE}")
        if record is not None and record.queue_size != size:
            raise ValueError(f"a record for {record.queue_size} entries and a ring of {size}")
        self.prepare(queue, size, chain_limit, counters, features, iotlb)
        self.desc_addr = desc
        self.driver_addr = avail
        self.device_addr = used
        self.bind(memory)
        self.be_in(memory)
        # Without a record to outlive us it is our own: the descriptors are nowhere else.
        self.record = PackedRecord(-1, 0, size) if record is None else record
        if fresh or self.record.load_version() == 0:
            self.begin_anew(base)
            self.begin_at(0)
            self.follow()
        else:
            found = self.record.recover(queue, self.desc)
            self.begin_at(<uint16_t>len(found))
            self.follow()
            self.adopt(found, self.fetched_last(found))
            self.call_after_recovery = True

    cdef int begin_anew(self, object base) except -1:
        # virtio has no base, vhost-user two of 16 bits, and front-ends disagree on what they are.
        cdef uint32_t given
        cdef uint16_t avail, used
        cdef uint32_t lead
        if base is None:
            return self.record.resume()
        given = base
        avail, used = <uint16_t>given, <uint16_t>(given >> 16)
        if given == 0:
            # The lawful base of a ring that is in an even round; what Linux says in User-Mode Linux
            # of a ring that was never used. The ring tells.
            avail = used = FIRST_PLACE if self.is_fresh() else 0
        elif used == 0:
            # DPDK's: the used position is where the available one is, since nothing is in flight.
            used = avail
        lead = slots_between(used, avail, <uint32_t>self.size)
        if slot_of(avail) >= self.size or slot_of(used) >= self.size or lead > self.size:
            raise RingError(self.queue, avail, f"base {given:#x} is no place of the ring")
        return self.record.begin(used, <uint16_t>lead)

    cdef bint is_fresh(self) noexcept:
        # Asked if the base is 0. Slot 0 then is used in the round before or available in this one,
        # if the ring was ever there; and untouched, or available for the first time, if it is new.
        # Available in the round before, and not used in it, is what the middle of a long chain
        # looks like, too: only a record that ended there tells them apart.
        cdef uint16_t flags = vu_load_relaxed16(self.desc + FLAGS_AT)
        if flags & F_USED:
            return False
        return not (flags & F_AVAIL and self.record.ended_at(0))

    cdef int follow(self) except -1:
        # Take over what the record has found.
        cdef PackedRecord record = self.record
        self.log = record.header
        self.entries = record.entries
        self.states = &record.entries.state
        self.state_step = sizeof(PackedEntry)
        self.slots = record.slots
        self.counter = record.next_counter
        self.avail = record.avail
        self.last_used = record.used
        self.free = record.free
        self.room = <uint32_t>self.size - record.held - record.lead
        return 0

    cdef Py_ssize_t fetched_last(self, tuple found):
        # How many of these the last slots before the next to fetch have, in this order: after the
        # first of them nothing was fetched that is completed by now.
        cdef uint16_t place = self.avail
        cdef Py_ssize_t count = 0
        for recovered in reversed(found):
            place = gone_back(place, self.slots[recovered.head].num, <uint32_t>self.size)
            if not self.same_chain(place, recovered.head):
                break
            count += 1
        return count

    cdef bint same_chain(self, uint16_t place, uint16_t head) noexcept nogil:
        # Whether a request is what the slots from `place` on have. All of each descriptor is
        # compared with its copy: a predecessor that died before it published a batch has left its
        # lengths there, and a ring that fetches again would take them for the driver's.
        cdef uint16_t entry = head
        # SAFETY: the entries of a request are inside, and so is the slot of a place.
        while self.same_descriptor(place, entry):
            if entry == self.slots[head].last:
                return True
            entry = self.slots[entry].next
            place = advanced(place, 1, <uint32_t>self.size)
        return False

    cdef bint same_descriptor(self, uint16_t place, uint16_t entry) noexcept nogil:
        # All but whose it is.
        cdef uint64_t whose = <uint64_t>(F_AVAIL | F_USED)
        cdef uint64_t here = vu_load_relaxed64(slot_at(self, place) + 8)
        cdef uint64_t copy = vu_load_relaxed64(&self.entries[entry].id)
        if vu_load_relaxed64(slot_at(self, place)) != vu_load_relaxed64(&self.entries[entry].addr):
            return False
        # The ring has len, id, flags, and the record id, flags, len.
        here = here >> 32 | here << 32
        return (here ^ copy) & ~(whose << 16) == 0

    cdef int bind(self, GuestMemory memory) except -1:
        cdef uint64_t length = 16 * <uint64_t>self.size
        cdef unsigned char *desc = memory.user(self.desc_addr, length)
        cdef unsigned char *driver = memory.user(self.driver_addr, 4)
        cdef unsigned char *device = memory.user(self.device_addr, 4)
        # Checked on both: a region may begin at an odd place of its file.
        if (self.desc_addr | <uintptr_t>desc) & 15:
            raise RingError(self.queue, self.avail, "descriptor ring is not aligned to 16")
        if (self.driver_addr | <uintptr_t>driver) & 3:
            raise RingError(self.queue, self.avail, "driver event area is not aligned to 4")
        if (self.device_addr | <uintptr_t>device) & 3:
            raise RingError(self.queue, self.avail, "device event area is not aligned to 4")
        if desc == NULL:
            raise MemoryFault(self.desc_addr, length, "descriptors not inside one region")
        if driver == NULL:
            raise MemoryFault(self.driver_addr, 4, "driver event area not inside one region")
        if device == NULL:
            raise MemoryFault(self.device_addr, 4, "device event area not inside one region")
        # SAFETY: each area lies inside one mapping, which `memory` holds.
        self.desc = desc
        self.driver = driver
        self.device = device
        self.desc_guest = guest_address(memory, self.desc_addr)
        self.device_guest = guest_address(memory, self.device_addr)
        return 0

    cdef void unbind(self) noexcept:
        self.desc = self.driver = self.device = NULL
        # Whoever comes after us may have the record by now.
        self.log = NULL
        self.entries = NULL
        self.states = NULL

    cdef uint16_t place(self) noexcept nogil:
        return self.avail

    cdef uint32_t base(self) noexcept nogil:
        return <uint32_t>self.avail | <uint32_t>self.last_used << 16

    # Fetching.

    cdef bint available(self) noexcept nogil:
        return is_available(vu_load_acquire16(slot_at(self, self.avail) + FLAGS_AT), self.avail)

    cdef int look(self) noexcept nogil:
        return self.available()

    cdef uint16_t backlog(self) noexcept nogil:
        # Relaxed: nothing is read on the strength of it.
        cdef uint32_t most = min(self.room, <uint32_t>LOOK_AHEAD), i
        cdef uint16_t place = self.avail, flags
        cdef uint16_t chains = 0
        for i in range(most):
            flags = vu_load_relaxed16(slot_at(self, place) + FLAGS_AT)
            if not is_available(flags, place):
                break
            if not flags & DESC_NEXT:
                chains += 1
            place = advanced(place, 1, <uint32_t>self.size)
        return chains

    cdef bint has_waiting(self, uint32_t count) noexcept nogil:
        # If each has as many descriptors as the one before. Relaxed, as above.
        cdef uint64_t slots = <uint64_t>count * self.chain_slots
        cdef uint16_t place
        if slots == 0 or slots > self.room:
            return slots == 0
        place = advanced(self.avail, <uint32_t>slots - 1, <uint32_t>self.size)
        return is_available(vu_load_relaxed16(slot_at(self, place) + FLAGS_AT), place)

    cdef int fetch(self, Chain *chain) noexcept nogil:
        # Acquire: pairs with the driver's write barrier before it stores the flags of a chain's
        # first descriptor; all else of the chain is read after it, or at once.
        cdef unsigned char *at = slot_at(self, self.avail)
        cdef uint64_t rest = vu_load_acquire64(at + 8), addr
        cdef uint16_t flags = <uint16_t>(rest >> 48), head = self.free
        cdef uint32_t length = <uint32_t>rest
        cdef bint write = flags & DESC_WRITE != 0
        if not is_available(flags, self.avail):
            return 0
        if flags & DESC_INDIRECT:
            return self.fetch_table(rest, chain)
        if flags & DESC_NEXT:
            return self.fetch_chain(rest, chain)
        addr = vu_load_relaxed64(at)
        # SAFETY: there is room for a piece.
        if (
            self.buffers != NULL or self.room == 0
            or not find_near(self, addr, length, self.pieces)
        ):
            return self.fetch_rare(rest, chain)
        # One descriptor, whose buffer lies where one of the last two did: as `walk_slots` has it.
        # SAFETY: there is a free entry as there is room.
        chain.pieces = self.pieces
        chain.readable_count = not write
        chain.writable_count = write
        chain.readable = 0 if write else length
        chain.writable = length if write else 0
        note_descriptor(self.entries + head, addr, rest)
        enter(self, head, 1, rest, chain)
        return 1

    # `rest` is the second half of the first descriptor at `avail`. Each is apart, or what one needs
    # would be in the way of the others.

    cdef int fetch_chain(self, uint64_t rest, Chain *chain) noexcept nogil:
        # Several descriptors.
        cdef Taken taken
        if self.buffers != NULL or not walk_near_slots(self, rest, chain, &taken):
            return self.fetch_rare(rest, chain)
        enter(self, taken.last, taken.count, taken.rest, chain)
        return 1

    cdef int fetch_table(self, uint64_t rest, Chain *chain) noexcept nogil:
        # One descriptor, which is that of a table.
        if self.buffers != NULL or not walk_near_table(self, rest, chain):
            return self.fetch_rare(rest, chain)
        enter(self, self.free, 1, rest, chain)
        return 1

    cdef int fetch_rare(self, uint64_t rest, Chain *chain) noexcept nogil:
        # Whatever it is.
        cdef uint16_t head = self.free
        cdef Taken taken
        if walk_slots(self, rest, chain, &taken) < 0:
            return self.not_walked(head)
        enter(self, taken.last, taken.count, taken.rest, chain)
        return 1

    cdef int fetch_again(self, uint16_t head, Chain *chain) noexcept nogil:
        return walk_copies(self, head, chain)

    cdef void prefetch(self) noexcept nogil:
        look_ahead(self, False)

    cdef void prefetch_to_fill(self) noexcept nogil:
        look_ahead(self, True)

    cdef bint coming(self, uint16_t after, iovec *first) noexcept nogil:
        # If each has as many descriptors as the one before.
        cdef uint64_t slots = <uint64_t>after * self.chain_slots, rest
        cdef const unsigned char *slot
        cdef uint16_t place
        if slots >= self.room:
            return False
        # SAFETY: fewer slots on than the ring has, which `room` does not exceed.
        place = advanced(self.avail, <uint32_t>slots, <uint32_t>self.size)
        slot = slot_at(self, place)
        rest = vu_load_relaxed64(slot + 8)
        if not is_available(<uint16_t>(rest >> 48), place):
            return False
        return find_first(
            self,
            vu_load_relaxed64(slot),
            <uint32_t>rest,
            (rest >> 48) & DESC_INDIRECT != 0,
            first,
        )

    cdef void unfetch(self, uint16_t head) noexcept nogil:
        # The stop's order and its proof are in fetching.pyx. With U1 the request is out of what
        # recovery counts; U2 only clears up.
        if self.entries != NULL:
            put_back(self, head)
            note_heads(self.log, self.free, self.free)
            note_out(self.entries + head)
        self.marks[head] = FREE
        self.last_avail -= 1
        self.avail = gone_back(self.avail, self.slots[head].num, <uint32_t>self.size)
        self.room += self.slots[head].num


cdef uint64_t guest_address(GuestMemory memory, uint64_t user_addr) noexcept:
    # Of something that lies inside the memory.
    cdef Py_ssize_t i = memory.find_user(user_addr)
    if i < 0:
        return 0
    return memory.table[i].guest_addr + (user_addr - memory.table[i].user_addr)
