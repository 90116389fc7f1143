# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The in-flight record of a packed ring: what a worker leaves to the one that comes after it.

A used descriptor overwrites the slot of another request, so the record has a copy of each
descriptor in flight. Completions are published in batches, by the flags of the first one:

    C0  those flags say "available", should the driver have left them at something else
    C1  the other used descriptors of the batch, with their flags, and id and length of the first
    C2  the requests' entries go to the free list: `free_head`, with `old_free_head` as it was
    C3  the intent: `used` becomes where the ring will be, `old` stays where it is
    C4  the flags of the first: the driver sees all of the batch
    C5  the marks of the batch, C6 `old_free_head`, C7 `old`: it is behind us

A death before C4 leaves "available" at `old`, and everything goes back to `old`: the requests are
run again, and what C1 has written already is taken back. After C4 the driver may have used that
slot for something else, but never with the flags that "available" means in this round: everything
goes forward. The two used positions and their wrap counters are one store, and are compared
together: with a batch as long as the ring the index comes back to the same value, and with two
stores a death in between would roll the wrap counter back and the index not.
"""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from vuproc.shm.atomics cimport (
    vu_compiler_barrier,
    vu_load_acquire16,
    vu_load_relaxed8,
    vu_load_relaxed16,
    vu_note8,
    vu_note16,
    vu_note64,
    vu_store_relaxed16,
)
from vuproc.shm.memory cimport Mapping
from vuproc.shm.place cimport (
    F_AVAIL,
    F_USED,
    FIRST_PLACE,
    advanced,
    available_bits,
    is_available,
    is_used,
    slot_of,
)

from vuproc.errors import MemoryFault, RingError
from vuproc.shm.inflight import Recovered

cdef enum:
    # virtio 1.3, 2.8: the largest queue.
    MAX_SIZE = 32768
    VERSION = 1
    # Where in a descriptor its flags are.
    FLAGS_AT = 14


@cython.final
cdef class PackedRecord:
    """One queue's in-flight record, mapped. Nothing in it is trusted."""

    def __cinit__(self, int fd, object offset, Py_ssize_t queue_size):
        cdef Py_ssize_t size
        cdef unsigned char *data
        if not 0 < queue_size <= MAX_SIZE:
            raise ValueError(f"queue size {queue_size} is not in 1..{MAX_SIZE}")
        size = sizeof(PackedHeader) + queue_size * sizeof(PackedEntry)
        if fd >= 0:
            self.mapping = Mapping(fd, size, offset)
            data = self.mapping.data
        else:
            data = <unsigned char *>(self.own_memory(size))
        if <uintptr_t>data % sizeof(uint64_t):
            raise MemoryFault(offset, size, "in-flight record is not aligned to 8")
        self.slots = <Slot *>calloc(queue_size, sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError
        # SAFETY: `size` bytes are there as long as we are, and aligned to their widest.
        self.header = <PackedHeader *>data
        self.entries = <PackedEntry *>(data + sizeof(PackedHeader))
        self.queue_size = queue_size

    cdef void *own_memory(self, size_t size) except NULL:
        self.own = calloc(1, size)
        if self.own == NULL:
            raise MemoryError
        return self.own

    def __dealloc__(self):
        free(self.slots)
        free(self.own)

    @property
    def version(self):
        """0: nothing to recover; 1: in use."""
        return self.load_version()

    cdef uint16_t load_version(self) noexcept nogil:
        return vu_load_relaxed16(&self.header.version)

    cdef bint ended_at(self, uint16_t place) noexcept nogil:
        # The last ring of this record was stopped in order, at this place.
        return (
            vu_load_relaxed8(&self.header.ended) == 1
            and vu_load_relaxed16(&self.header.used_idx) == slot_of(place)
            and vu_load_relaxed8(&self.header.used_wrap) == place >> 15
        )

    cdef int resume(self) except -1:
        # Begin where the last ring ended; at the beginning if there was none.
        cdef uint16_t used = FIRST_PLACE, lead = 0
        cdef uint16_t slot = vu_load_relaxed16(&self.header.used_idx)
        if vu_load_relaxed8(&self.header.ended) == 1 and slot < self.queue_size:
            used = <uint16_t>(slot | (vu_load_relaxed8(&self.header.used_wrap) & 1) << 15)
            lead = min(vu_load_relaxed16(&self.header.lead), <uint16_t>self.queue_size)
        return self.begin(used, lead)

    cdef int begin(self, uint16_t used, uint16_t lead) except -1:
        # An empty record of a ring at `used`. Its version is the last to be stored: a death before
        # it leaves a record that nobody has begun.
        cdef Py_ssize_t i
        vu_note16(&self.header.version, 0)
        vu_note64(&self.header.features, 0)
        vu_note16(&self.header.desc_num, <uint16_t>self.queue_size)
        vu_note16(&self.header.lead, lead)
        for i in range(self.queue_size):
            vu_note16(&self.entries[i].next, <uint16_t>(i + 1))
            self.slots[i].next = <uint16_t>(i + 1)
            if vu_load_relaxed8(&self.entries[i].inflight):
                vu_note8(&self.entries[i].inflight, 0)
        note_heads(self.header, 0, 0)
        note_word(self.header, used, used)
        vu_note16(&self.header.version, VERSION)
        # Not before: the position of the last end may be asked for once more, by who finds no
        # version.
        vu_note8(&self.header.ended, 0)
        self.next_counter = 0
        self.free = 0
        self.held = 0
        self.used = used
        self.lead = lead
        self.avail = advanced(used, lead, <uint32_t>self.queue_size)
        return 0

    cdef tuple recover(self, int queue, unsigned char *ring):
        # Each word is read once, and nothing is stored before all of it was found in order.
        cdef Py_ssize_t size = self.queue_size
        cdef PackedHeader header
        cdef PackedEntry *entries = <PackedEntry *>malloc(size * sizeof(PackedEntry))
        if entries == NULL:
            raise MemoryError
        try:
            memcpy(&header, self.header, sizeof(PackedHeader))
            memcpy(entries, self.entries, size * sizeof(PackedEntry))
            # Or the compiler might read the shared one again instead of the copy.
            vu_compiler_barrier()
            try:
                return self.take_over(&header, entries, ring)
            except ValueError as error:
                place = header.used_idx
                raise RingError(queue, place, f"in-flight record {error}") from None
        finally:
            free(entries)

    cdef tuple take_over(self, PackedHeader *header, PackedEntry *entries, unsigned char *ring):
        cdef uint32_t size = <uint32_t>self.queue_size, i, steps, held = 0
        cdef uint16_t old, head, first, entry
        cdef bint forward = False
        cdef bytearray known = bytearray(size)
        cdef unsigned char *seen = known
        cdef list live = []
        self.check(header)
        self.used = <uint16_t>(header.used_idx | header.used_wrap << 15)
        old = <uint16_t>(header.old_used_idx | header.old_used_wrap << 15)
        first = header.old_free_head
        if self.used != old:
            # SAFETY: the slot was compared with the ring's size. Acquire as in `fetch`.
            forward = not is_available(
                vu_load_acquire16(ring + 16 * <size_t>header.old_used_idx + FLAGS_AT), old
            )
            if forward:
                # C4 was done: what stands before the old free list is completed.
                first = header.free_head
                head = first
                for steps in range(size + 1):
                    if head == header.old_free_head:
                        break
                    if head >= size:
                        raise ValueError(f"frees entry {head}, which is outside of it")
                    entries[head].inflight = 0
                    head = entries[head].next
                else:
                    raise ValueError("has a free list without an end")
            else:
                self.used = old
        # What is on the free list is not in flight, whatever its mark says (F3 without F4).
        head = first
        for steps in range(size + 1):
            if head == size:
                break
            if head > size or seen[head]:
                raise ValueError(f"has entry {head} on its free list, which does not belong there")
            seen[head] = 1
            entries[head].inflight = 0
            head = entries[head].next
        for i in range(size):
            if entries[i].inflight > 1:
                raise ValueError(f"has a mark of {entries[i].inflight} at entry {i}")
            if entries[i].inflight:
                live.append((entries[i].counter, i, entries[i].state & 0xf, entries[i].state >> 4))
                held += entries[i].num
                if entries[i].num == 0 or held + header.lead > size:
                    raise ValueError(f"has {entries[i].num} descriptors at entry {i}")
                entry = <uint16_t>i
                for steps in range(entries[i].num):
                    if entry >= size or seen[entry]:
                        raise ValueError(f"has entry {entry} in the request of entry {i}")
                    seen[entry] = 1
                    head, entry = entry, entries[entry].next
                if head != entries[i].last:
                    raise ValueError(f"ends the request of entry {i} at {head}")
        if 0 in known:
            raise ValueError(f"has lost entry {known.index(0)}")
        live.sort()
        self.free = first
        self.lead = header.lead
        self.held = held
        self.avail = advanced(self.used, held + header.lead, size)
        self.mirror(entries)
        # All is in order. To die in here is to leave less to do.
        for i in range(size):
            if entries[i].inflight != vu_load_relaxed8(&self.entries[i].inflight):
                note_out(self.entries + i)
        vu_note8(&self.header.ended, 0)
        self.take_back(ring)
        note_heads(self.header, first, first)
        note_word(self.header, self.used, self.used)
        self.next_counter = 0
        if live:
            self.next_counter = <uint64_t>live[len(live) - 1][0] + 1
        return tuple([Recovered(head, attempts, stage) for _, head, attempts, stage in live])

    cdef int check(self, const PackedHeader *header) except -1:
        cdef uint32_t size = <uint32_t>self.queue_size
        if header.version != VERSION:
            raise ValueError(f"has version {header.version}, which is not known here")
        if header.features:
            raise ValueError(f"has features {header.features:#x}, which are not known here")
        if header.desc_num != size:
            raise ValueError(f"is for {header.desc_num} descriptors and the ring has {size}")
        if header.used_idx >= size or header.old_used_idx >= size:
            raise ValueError(
                f"stands at slots {header.old_used_idx} and {header.used_idx} "
                f"of a ring that has {size}"
            )
        if header.used_wrap > 1 or header.old_used_wrap > 1:
            raise ValueError(f"has wrap counters {header.old_used_wrap} and {header.used_wrap}")
        if header.lead > size:
            raise ValueError(f"is {header.lead} slots behind in a ring that has {size}")
        return 0

    cdef void mirror(self, const PackedEntry *entries) noexcept:
        cdef Py_ssize_t i
        for i in range(self.queue_size):
            self.slots[i].next = entries[i].next
            self.slots[i].last = entries[i].last
            self.slots[i].num = entries[i].num
        for i in range(self.queue_size):
            if entries[i].inflight:
                # SAFETY: the last entry of a request was found inside.
                self.slots[i].id = entries[entries[i].last].id

    cdef void take_back(self, unsigned char *ring) noexcept nogil:
        # What a batch wrote behind its first descriptor, and did not publish: the slots are still
        # the device's, and a driver that comes there must not find them used.
        cdef uint32_t size = <uint32_t>self.queue_size, i
        cdef uint16_t place = self.used, flags
        cdef unsigned char *at
        for i in range(self.held + self.lead):
            # SAFETY: a place's slot is inside the ring.
            at = ring + 16 * <size_t>slot_of(place) + FLAGS_AT
            flags = vu_load_relaxed16(at)
            if is_used(flags, place):
                vu_store_relaxed16(
                    at, <uint16_t>((flags & ~(F_AVAIL | F_USED)) | available_bits(place))
                )
            place = advanced(place, 1, size)

    cdef void end(self) noexcept nogil:
        # All is completed, and the driver has seen it: the next ring begins at its own base.
        vu_note8(&self.header.ended, 1)
        vu_note16(&self.header.version, 0)
