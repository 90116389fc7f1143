# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The device side of a packed virtqueue (virtio 1.3, section 2.8)."""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.uio cimport iovec

from vuproc.shm.atomics cimport (
    vu_fence_full,
    vu_load_acquire16,
    vu_load_relaxed16,
    vu_load_relaxed32,
    vu_load_relaxed64,
    vu_prefetch,
    vu_store_relaxed16,
    vu_store_relaxed64,
    vu_store_release16,
)
from vuproc.shm.counters cimport QueueCounters
from vuproc.shm.fetching cimport FREE, TAKEN
from vuproc.shm.memory cimport GuestMemory, Region
from vuproc.shm.packed_record cimport (
    PackedEntry,
    PackedRecord,
    note_deaths,
    note_descriptor,
    note_heads,
    note_out,
    note_own_stage,
    note_put_back,
    note_taken_out,
    note_untouched,
    note_word,
)
from vuproc.shm.place cimport (
    F_AVAIL,
    F_USED,
    FIRST_PLACE,
    SLOT_MASK,
    advanced,
    available_bits,
    gone_back,
    is_available,
    slot_of,
    slots_between,
    used_bits,
)
from vuproc.shm.request cimport BY_POLICY, Chain
from vuproc.shm.ring cimport MAX_SIZE, Descriptor, Ring
from vuproc.shm.walk cimport (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    Walk,
    end_walk,
    take_descriptor,
)

from vuproc.errors import MemoryFault, RingError

cdef enum:
    # Slots that `backlog` looks at.
    LOOK_AHEAD = 1024
    # Where a descriptor has its flags, and an event area.
    FLAGS_AT = 14
    EVENT_FLAGS_AT = 2
    # What an event area says: call or kick me; do not; when you come to this place.
    EVENT_ENABLE = 0
    EVENT_DISABLE = 1
    EVENT_DESC = 2
    EVENT_MASK = 3


@cython.final
cdef class PackedRing(Ring):
    """The device side of a packed virtqueue."""

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
    ):
        if not 0 < size <= MAX_SIZE:
            raise RingError(queue, 0, f"size {size} is not in 1 to {MAX_SIZE}")
        if record is not None and record.queue_size != size:
            raise ValueError(f"a record for {record.queue_size} entries and a ring of {size}")
        self.prepare(queue, size, chain_limit, counters, features)
        self.desc_addr = desc
        self.driver_addr = avail
        self.device_addr = used
        self.bind(memory)
        self.memory = memory
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
        # A predecessor may have died with kicks refused, or as the device of other features.
        vu_store_relaxed16(self.device + EVENT_FLAGS_AT, EVENT_ENABLE)

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
        self.slots = record.slots
        self.counter = record.next_counter
        self.avail = record.avail
        self.last_used = record.used
        self.free = record.free
        self.room = <uint32_t>self.size - record.held - record.lead
        return 0

    cdef bint fetched_last(self, tuple found):
        # Whether the last slots before the next to fetch are just these requests', in this order:
        # then nothing was fetched after the first of them that is completed by now. All of each
        # descriptor is compared with its copy: a predecessor that died before it published a batch
        # has left its lengths there, and a ring that fetches again would take them for the driver's.
        cdef uint16_t place = advanced(self.record.used, self.record.lead, <uint32_t>self.size)
        cdef uint16_t entry, last
        for recovered in found:
            entry = recovered.head
            last = self.slots[entry].last
            # SAFETY: the entries of a request are inside, and so is the slot of a place.
            while True:
                if not self.same_descriptor(place, entry):
                    return False
                place = advanced(place, 1, <uint32_t>self.size)
                if entry == last:
                    break
                entry = self.slots[entry].next
        return True

    cdef bint same_descriptor(self, uint16_t place, uint16_t entry) noexcept nogil:
        # All but whose it is.
        cdef uint64_t whose = <uint64_t>(F_AVAIL | F_USED)
        cdef uint64_t here = vu_load_relaxed64(self.slot(place) + 8)
        cdef uint64_t copy = vu_load_relaxed64(&self.entries[entry].id)
        if vu_load_relaxed64(self.slot(place)) != vu_load_relaxed64(&self.entries[entry].addr):
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

    cdef uint16_t place(self) noexcept nogil:
        return self.avail

    cdef uint32_t base(self) noexcept nogil:
        return <uint32_t>self.avail | <uint32_t>self.last_used << 16

    cdef unsigned char *slot(self, uint16_t place) noexcept nogil:
        # SAFETY: a place's slot is below the size, as `begin_anew`, `recover` and `advanced` see to
        # it; `bind` checked the whole ring.
        return self.desc + 16 * <size_t>(place & SLOT_MASK)

    # Fetching.

    cdef bint available(self) noexcept nogil:
        return is_available(vu_load_acquire16(self.slot(self.avail) + FLAGS_AT), self.avail)

    cdef int look(self) noexcept nogil:
        return self.available()

    cdef uint16_t backlog(self) noexcept nogil:
        # Relaxed: nothing is read on the strength of it.
        cdef uint32_t most = min(self.room, <uint32_t>LOOK_AHEAD), i
        cdef uint16_t place = self.avail, flags
        cdef uint16_t chains = 0
        for i in range(most):
            flags = vu_load_relaxed16(self.slot(place) + FLAGS_AT)
            if not is_available(flags, place):
                break
            if not flags & DESC_NEXT:
                chains += 1
            place = advanced(place, 1, <uint32_t>self.size)
        return chains

    cdef int fetch(self, Chain *chain) noexcept nogil:
        # Acquire: pairs with the driver's write barrier before it stores the flags of a chain's
        # first descriptor; all of the chain is read after it.
        cdef uint16_t flags = vu_load_acquire16(self.slot(self.avail) + FLAGS_AT)
        cdef uint16_t head = self.free
        cdef Slot *slot
        if not is_available(flags, self.avail):
            return 0
        if self.walk(head, flags, chain) < 0:
            return -1
        slot = self.slots + head
        chain.head = head
        # The record first: whoever comes after us must find what we are going to have.
        self.free = self.slots[slot.last].next
        note_taken_out(self.log, self.entries + head, slot, self.counter, self.free)
        self.counter += 1
        self.marks[head] = TAKEN
        self.avail = advanced(self.avail, slot.num, <uint32_t>self.size)
        self.room -= slot.num
        self.last_avail += 1
        self.flying += 1
        return 1

    cdef int walk(self, uint16_t head, uint16_t flags, Chain *chain) noexcept nogil:
        # Fill `chain` and the entries from `head` on. Each descriptor is read once, and only its
        # copy is used; `flags` are those of the first, by which it was found.
        cdef uint16_t place = self.avail, entry = head, id
        cdef uint32_t count = 0, length
        cdef uint64_t addr, rest
        cdef unsigned char *at
        cdef Walk walk
        memset(&walk, 0, sizeof(walk))
        while True:
            if count == self.room:
                return self.fault(b"more descriptors available than the ring has free")
            at = self.slot(place)
            addr = vu_load_relaxed64(at)
            rest = vu_load_relaxed64(at + 8)
            length = <uint32_t>rest
            id = <uint16_t>(rest >> 32)
            if count:
                flags = <uint16_t>(rest >> 48)
            count += 1
            # SAFETY: there are as many free entries as there is room.
            note_descriptor(self.entries + entry, addr, length, id, flags)
            if self.take_one(&walk, head, addr, length, flags) < 0:
                return -1
            if not flags & DESC_NEXT:
                break
            if count < self.room:
                entry = self.slots[entry].next
            place = advanced(place, 1, <uint32_t>self.size)
        self.slots[head].last = entry
        self.slots[head].num = <uint16_t>count
        self.slots[head].id = id
        chain.descriptors = <uint16_t>count
        end_walk(self, &walk, chain)
        return 0

    cdef int take_one(
        self, Walk *walk, uint16_t head, uint64_t addr, uint32_t length, uint16_t flags
    ) noexcept nogil:
        if flags & DESC_INDIRECT:
            # 2.8.7: WRITE is ignored.
            if not self.indirect:
                return self.fault(b"indirect descriptor without the feature")
            if flags & DESC_NEXT:
                return self.fault(b"indirect descriptor with a next one")
            return self.take_table(walk, head, addr, length)
        return take_descriptor(self, walk, head, addr, length, flags & DESC_WRITE)

    cdef int take_table(
        self, Walk *walk, uint16_t head, uint64_t addr, uint32_t length
    ) noexcept nogil:
        # 2.8.7: one descriptor after the other, of whose flags only WRITE matters.
        cdef uint32_t i
        cdef Descriptor *one
        if self.copy_table(addr, length) < 0:
            return -1
        for i in range(length >> 4):
            # SAFETY: `copy_table` has copied so many.
            one = self.copied + i
            if one.next & DESC_INDIRECT:
                return self.fault(b"indirect descriptor in an indirect table")
            if take_descriptor(self, walk, head, one.addr, one.len, one.next & DESC_WRITE) < 0:
                return -1
        return 0

    cdef int fetch_again(self, uint16_t head, Chain *chain) noexcept nogil:
        # From the copies: the ring's own may be overwritten. They may be the front-end's memory, so
        # they are read once, too.
        cdef uint16_t entry = head
        cdef uint32_t i
        cdef uint64_t rest
        cdef Walk walk
        if self.writable != NULL:
            self.writable[head].count = 0
        memset(&walk, 0, sizeof(walk))
        for i in range(self.slots[head].num):
            # SAFETY: the entries of a request in flight are linked inside the record.
            rest = vu_load_relaxed64(&self.entries[entry].id)
            if self.take_one(
                &walk,
                head,
                vu_load_relaxed64(&self.entries[entry].addr),
                <uint32_t>(rest >> 32),
                # What follows is a matter of our count.
                <uint16_t>(rest >> 16) & ~DESC_NEXT,
            ) < 0:
                return -1
            entry = self.slots[entry].next
        chain.head = head
        chain.descriptors = self.slots[head].num
        end_walk(self, &walk, chain)
        return 1

    cdef void prefetch(self) noexcept nogil:
        # While one request is served, the next one's first bytes are on their way here. Nothing is
        # decided on what is read for it.
        cdef iovec first
        cdef unsigned char *at = self.slot(self.avail)
        if is_available(vu_load_relaxed16(at + FLAGS_AT), self.avail) and self.memory.translate(
            vu_load_relaxed64(at), 1, &first, 1
        ) == 1:
            vu_prefetch(first.iov_base)

    cdef void put_back(self, uint16_t head) noexcept nogil:
        # The entries of `head` are the first of the free list, in the record's links and in ours;
        # the caller stores the list's head.
        cdef uint16_t last = self.slots[head].last
        note_put_back(self.entries + last, self.free)
        self.slots[last].next = self.free
        self.free = head

    cdef void unfetch(self, uint16_t head) noexcept nogil:
        # The stop's order and its proof are in fetching.pyx. With U1 the request is out of what
        # recovery counts; U2 only clears up.
        if self.entries != NULL:
            self.put_back(head)
            note_heads(self.log, self.free, self.free)
            note_out(self.entries + head)
        self.marks[head] = FREE
        self.last_avail -= 1
        self.avail = gone_back(self.avail, self.slots[head].num, <uint32_t>self.size)
        self.room += self.slots[head].num

    # The record.

    cdef void note_begun(self, uint16_t head, uint8_t attempts) noexcept nogil:
        if self.entries != NULL:
            note_deaths(self.entries + head, attempts + 1)
            if self.policy is not None:
                note_own_stage(self.entries + head, BY_POLICY)

    cdef void note_taken(self, uint16_t head) noexcept nogil:
        # What the device does with it, and when, is not known here.
        if self.entries != NULL and self.policy is not None:
            note_own_stage(self.entries + head, BY_POLICY)

    cdef void note_survived(self, uint16_t head, uint8_t attempts) noexcept nogil:
        if self.entries != NULL:
            note_deaths(self.entries + head, attempts)

    cdef void note_resubmit(self, uint16_t head, uint8_t stage) noexcept nogil:
        if self.entries != NULL:
            note_own_stage(self.entries + head, stage)

    cdef void note_given_back(self, uint16_t head) noexcept nogil:
        if self.entries != NULL:
            note_untouched(self.entries + head)

    cdef void note_blamed(self, uint16_t head) noexcept nogil:
        if self.entries != NULL:
            note_deaths(self.entries + head, (self.entries[head].state & 0xf) + 1)

    cdef void note_end(self) noexcept nogil:
        self.record.end()

    # Publishing.

    cdef bint commit(self) noexcept nogil:
        # Publish the batch: C0 to C7 of packed_record.pyx, with nothing fetched in between. Answers
        # whether the driver wants to be notified.
        cdef uint16_t old = self.last_used, place = old, old_free = self.free, head
        cdef unsigned char *first = self.slot(old)
        cdef uint16_t flags = vu_load_relaxed16(first + FLAGS_AT)
        cdef uint32_t slots = 0
        cdef uint64_t rest
        cdef int i
        # C0. Drivers need not set the bits of a chain's later descriptors.
        if not is_available(flags, old):
            vu_store_relaxed16(
                first + FLAGS_AT, <uint16_t>((flags & ~(F_AVAIL | F_USED)) | available_bits(old))
            )
            flags = available_bits(old)
        # C1. Nobody looks behind the first slot before C4: each is one store. The first keeps its
        # flags, in the same store as id and length.
        for i in range(self.batched):
            head = self.batch[i].head
            rest = <uint64_t>self.batch[i].length | <uint64_t>self.slots[head].id << 32
            if i:
                flags = used_bits(place)
                if self.batch[i].length:
                    flags |= DESC_WRITE
            vu_store_relaxed64(self.slot(place) + 8, rest | <uint64_t>flags << 48)
            slots += self.slots[head].num
            place = advanced(place, self.slots[head].num, <uint32_t>self.size)
        # C2.
        for i in range(self.batched):
            self.put_back(self.batch[i].head)
        note_heads(self.log, self.free, old_free)
        # C3.
        note_word(self.log, place, old)
        # C4. Release: pairs with the driver's read barrier after it has loaded these flags; the
        # rest of the batch and the buffers' bytes are visible before it. WRITE says that the length
        # means something.
        flags = used_bits(old)
        if self.batch[0].length:
            flags |= DESC_WRITE
        vu_store_release16(first + FLAGS_AT, flags)
        # C5.
        for i in range(self.batched):
            head = self.batch[i].head
            self.marks[head] = FREE
            note_out(self.entries + head)
        # C6 and C7.
        note_heads(self.log, self.free, self.free)
        note_word(self.log, place, place)
        self.last_used = place
        self.room += slots
        if self.writable != NULL:
            self.mark_published(old)
        self.batched = 0
        # Full fence: pairs with the driver's between its store of its event area and its next look
        # at a slot. One of the two sees the other.
        vu_fence_full()
        return self.wants_call(slots)

    cdef bint wants_call(self, uint32_t slots) noexcept nogil:
        # For so many slots that were used just now. One load for place and flags.
        cdef uint32_t wish = vu_load_relaxed32(self.driver)
        cdef uint16_t event = <uint16_t>wish
        cdef uint32_t distance
        cdef bint first = not self.evaluated
        if wish >> 16 & EVENT_MASK != EVENT_DESC or not self.event_idx:
            return wish >> 16 & EVENT_MASK != EVENT_DISABLE
        self.evaluated = True
        # 2.8.10: notify if the place is among the slots just used. At first it is not known what
        # was published and not compared before. Behind the used position or at it: a later event.
        distance = slots_between(event, self.last_used, <uint32_t>self.size)
        return first or 0 < distance <= slots

    cdef void mark_published(self, uint16_t old) noexcept nogil:
        # After the stores, and before the driver is called. A death in between leaves it to the
        # successor, which marks the whole ring.
        cdef uint16_t place = old
        cdef int i
        for i in range(self.batched):
            if self.used_logged:
                self.dirty.mark_range(self.desc_guest + 16 * <uint64_t>slot_of(place), 16)
            place = advanced(place, self.slots[self.batch[i].head].num, <uint32_t>self.size)

    cdef void mark_used_ring(self) noexcept nogil:
        # The log address of SET_VRING_ADDR is not asked: front-ends give the event area's, and it is
        # the descriptors that are written.
        if self.used_logged:
            self.dirty.mark_range(self.desc_guest, 16 * <uint64_t>self.size)
            self.dirty.mark_range(self.device_guest, 4)

    cdef uint64_t used_bytes(self) noexcept nogil:
        return 4

    # Kicks.

    cdef int ask_kicks(self) noexcept nogil:
        cdef uint16_t wish = EVENT_DESC if self.event_idx else EVENT_ENABLE
        if self.event_idx:
            vu_store_relaxed16(self.device, self.avail)
        if self.shown_flags != wish:
            self.shown_flags = wish
            # Release: a driver that sees the flags sees the place, too.
            vu_store_release16(self.device + EVENT_FLAGS_AT, wish)
        # Full fence: pairs with the driver's between its store of a chain's flags and its load of
        # our event area. Either it sees our wish, or we see its descriptor here.
        vu_fence_full()
        return self.look()

    cdef void refuse_kicks(self) noexcept nogil:
        if self.shown_flags != EVENT_DISABLE:
            self.shown_flags = EVENT_DISABLE
            vu_store_relaxed16(self.device + EVENT_FLAGS_AT, EVENT_DISABLE)


cdef uint64_t guest_address(GuestMemory memory, uint64_t user_addr) noexcept:
    # Of something that lies inside the memory.
    cdef Py_ssize_t i
    cdef Region *region
    for i in range(memory.count):
        region = memory.table + i
        if user_addr >= region.user_addr and user_addr - region.user_addr < region.size:
            return region.guest_addr + (user_addr - region.user_addr)
    return 0
