# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The device side of a packed virtqueue (virtio 1.3, section 2.8)."""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from vuproc.shm.atomics cimport (
    vu_fence_full,
    vu_load_relaxed16,
    vu_load_relaxed32,
    vu_store_relaxed16,
    vu_store_relaxed64,
    vu_store_release16,
)
from vuproc.shm.completions cimport Completion
from vuproc.shm.fetching cimport BY_POLICY, FREE
from vuproc.shm.packed_fetching cimport FLAGS_AT, PackedFetching, put_back, slot_at
from vuproc.shm.packed_record cimport (
    PackedEntry,
    Slot,
    note_both,
    note_deaths,
    note_heads,
    note_out,
    note_own_stage,
    note_untouched,
    note_word,
)
from vuproc.shm.place cimport (
    F_AVAIL,
    F_USED,
    advanced,
    available_bits,
    is_available,
    slot_of,
    slots_between,
    used_bits,
)
from vuproc.shm.walk cimport DESC_WRITE

cdef enum:
    # Where an event area has its flags.
    EVENT_FLAGS_AT = 2
    # What it says: call or kick me; do not; when you come to this place.
    EVENT_ENABLE = 0
    EVENT_DISABLE = 1
    EVENT_DESC = 2
    EVENT_MASK = 3


@cython.final
cdef class PackedRing(PackedFetching):
    """The device side of a packed virtqueue."""

    def __cinit__(self, *args, **kwargs):
        # A predecessor may have died with kicks refused, or as the device of other features.
        vu_store_relaxed16(self.device + EVENT_FLAGS_AT, EVENT_ENABLE)

    # The record.

    cdef void note_begin(self, uint16_t head, uint8_t attempts) noexcept nogil:
        if self.entries == NULL:
            return
        if self.policy is None:
            note_deaths(self.entries + head, attempts)
        else:
            note_both(self.entries + head, attempts, BY_POLICY)

    cdef void note_attempts(self, uint16_t head, uint8_t attempts) noexcept nogil:
        if self.entries != NULL:
            note_deaths(self.entries + head, attempts)

    cdef void note_stage(self, uint16_t head, uint8_t stage) noexcept nogil:
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
        cdef uint16_t old = self.last_used, old_free = self.free, head, place
        cdef uint16_t flags, bits = used_bits(old)
        cdef uint32_t slots = 0, num, at = slot_of(old), size = <uint32_t>self.size
        cdef unsigned char *desc = self.desc
        cdef unsigned char *first = slot_at(self, old)
        cdef uint64_t rest
        cdef PackedEntry *entries = self.entries
        cdef Slot *all_slots = self.slots
        cdef Slot *slot
        cdef Completion *one
        cdef uint8_t *marks = self.marks
        cdef int i, count = self.batched
        # C0. Drivers need not set the bits of a chain's later descriptors.
        flags = vu_load_relaxed16(first + FLAGS_AT)
        if not is_available(flags, old):
            flags = <uint16_t>((flags & ~(F_AVAIL | F_USED)) | available_bits(old))
            vu_store_relaxed16(first + FLAGS_AT, flags)
        # C1. Nobody looks behind the first slot before C4: each is one store. The first keeps its
        # flags, in the same store as id and length. WRITE says that the length means something.
        for i in range(count):
            one = self.batch + i
            slot = all_slots + one.head
            rest = <uint64_t>one.length | <uint64_t>slot.id << 32
            if i:
                flags = bits | DESC_WRITE if one.length else bits
            # SAFETY: at < size, the first as in `slot_at`; `bind` checked the whole ring.
            vu_store_relaxed64(desc + 16 * <size_t>at + 8, rest | <uint64_t>flags << 48)
            num = slot.num
            slots += num
            at += num
            if at >= size:
                at -= size
                bits ^= F_AVAIL | F_USED
        # C2, the last one first: so what was taken from the list one after the other, and comes
        # back in that order, is linked as it has to be.
        for i in range(count - 1, -1, -1):
            put_back(self, self.batch[i].head)
        note_heads(self.log, self.free, old_free)
        place = <uint16_t>(at | (bits & F_USED))
        # C3.
        note_word(self.log, place, old)
        # C4. Release: pairs with the driver's read barrier after it has loaded these flags; the
        # rest of the batch and the buffers' bytes are visible before it.
        flags = used_bits(old)
        if self.batch[0].length:
            flags |= DESC_WRITE
        vu_store_release16(first + FLAGS_AT, flags)
        # C5.
        for i in range(count):
            head = self.batch[i].head
            marks[head] = FREE
            note_out(entries + head)
        # C6 and C7.
        note_heads(self.log, self.free, self.free)
        note_word(self.log, place, place)
        self.last_used = place
        self.room += slots
        if self.buffers != NULL:
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
