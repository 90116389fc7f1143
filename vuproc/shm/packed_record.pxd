"""C interface of a packed ring's in-flight record: the layout, and each store with its place.

The stores have names, in the order in which one request makes them: F1 to F4 at the fetch, X1 to X3
round the device's code, C2, C3 and C5 to C7 of a batch of completions (C0, C1 and C4 are the
ring's), G1 where the device gives a request back, U1 and U2 where the ring takes a fetch back.
Whoever reads them comes after the death of the one who wrote, and finds a prefix of that order.

A request lives in a chain of entries, one for each of its descriptors; the number of the first one
is its head. Entries which no request has form the free list, whose end is the number of entries.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from vuproc.shm.atomics cimport (
    vu_load_relaxed8,
    vu_note8,
    vu_note16,
    vu_note32,
    vu_note64,
)
from vuproc.shm.memory cimport Mapping


cdef struct PackedHeader:
    # QueueRegionPacked of the vhost-user specification, up to its entries. What belongs together is
    # one store: the two heads, and `used_idx` to `word_end`.
    uint64_t features              # 0
    uint16_t version               # 0: not in use
    uint16_t desc_num              # entries
    uint16_t free_head             # of the free list; with what is being completed in front
    uint16_t old_free_head         # without
    uint16_t used_idx              # where the ring is used up to, once what is under way is out
    uint16_t old_used_idx          # and before
    uint8_t used_wrap
    uint8_t old_used_wrap
    uint16_t word_end              # 0. From here on the specification leaves it unused.
    uint16_t lead                  # slots which are in nobody's hands, since before our time
    uint8_t ended                  # 1: the last ring was stopped with nothing in flight
    uint8_t spare[5]


cdef struct PackedEntry:
    # DescStatePacked. The first line matters in the entry of a head.
    uint8_t inflight               # 1 from the fetch until the ring shows it as used
    uint8_t state                  # low half: deaths inside the device's code; high: the stage
    uint16_t next                  # the next entry of its request, or of the free list
    uint16_t last                  # the last entry of the request
    uint16_t num                   # how many it has
    uint64_t counter               # order of the fetches
    uint16_t id                    # the descriptor, as it was fetched
    uint16_t flags
    uint32_t len
    uint64_t addr


cdef struct Slot:
    # What a ring keeps of an entry for itself: nobody else writes it.
    uint16_t next
    uint16_t last
    uint16_t num
    uint16_t id                    # of the buffer: its last descriptor's


cdef class PackedRecord:
    cdef Mapping mapping           # None: the record is in private memory
    cdef void *own
    cdef PackedHeader *header
    cdef PackedEntry *entries
    cdef Slot *slots
    cdef readonly Py_ssize_t queue_size
    # What `begin` and `recover` found.
    cdef uint64_t next_counter
    cdef uint16_t used             # places
    cdef uint16_t avail
    cdef uint16_t lead
    cdef uint16_t free
    cdef uint32_t held             # slots of the requests in flight

    cdef void *own_memory(self, size_t size) except NULL
    cdef int check(self, const PackedHeader *header) except -1
    cdef uint16_t load_version(self) noexcept nogil
    cdef bint ended_at(self, uint16_t place) noexcept nogil
    cdef int begin(self, uint16_t used, uint16_t lead) except -1
    cdef int resume(self) except -1
    cdef tuple recover(self, int queue, unsigned char *ring)
    cdef tuple take_over(self, PackedHeader *header, PackedEntry *entries, unsigned char *ring)
    cdef void mirror(self, const PackedEntry *entries) noexcept
    cdef void take_back(self, unsigned char *ring) noexcept nogil
    cdef void end(self) noexcept nogil


cdef inline void note_descriptor(
    PackedEntry *entry, uint64_t addr, uint64_t rest
) noexcept nogil:
    # rest: the second half of the descriptor, whose length is the first of it there and the last
    # of it here.
    vu_note64(&entry.addr, addr)  # F1
    vu_note64(&entry.id, rest >> 32 | rest << 32)


cdef inline uint64_t place_of(uint16_t next, uint16_t last, uint16_t num) noexcept nogil:
    return <uint64_t>next | <uint64_t>last << 16 | <uint64_t>num << 32


cdef inline void note_taken_out(
    PackedHeader *header, PackedEntry *entry, uint64_t place, uint64_t counter, uint16_t free
) noexcept nogil:
    # place: `next`, `last` and `num`, 16 bits each.
    vu_note64(&entry.counter, counter)  # F2
    # F3, in one store with what makes the entry the head of its request; `state` becomes 0.
    vu_note64(&entry.inflight, 1 | place << 16)
    note_heads(header, free, free)  # F4: it is fetched


cdef inline void note_heads(PackedHeader *header, uint16_t free, uint16_t old) noexcept nogil:
    vu_note32(&header.free_head, <uint32_t>free | <uint32_t>old << 16)  # F4, C2, C6, U1


cdef inline void note_word(PackedHeader *header, uint16_t used, uint16_t old) noexcept nogil:
    # C3: the intent, before the ring shows it. C7: it is behind us.
    vu_note64(
        &header.used_idx,
        <uint64_t>(used & 0x7fff)
        | <uint64_t>(old & 0x7fff) << 16
        | <uint64_t>(used >> 15) << 32
        | <uint64_t>(old >> 15) << 40,
    )


cdef inline void note_put_back(PackedEntry *last, uint16_t next) noexcept nogil:
    vu_note16(&last.next, next)  # C2, U1


cdef inline void note_out(PackedEntry *entry) noexcept nogil:
    vu_note8(&entry.inflight, 0)  # C5, U2


cdef inline void note_deaths(PackedEntry *entry, uint8_t deaths) noexcept nogil:
    # X1: one more; X3: as before, it was survived.
    cdef uint8_t state = vu_load_relaxed8(&entry.state)
    vu_note8(&entry.state, (state & 0xf0) | min(deaths, 0xf))


cdef inline void note_own_stage(PackedEntry *entry, uint8_t stage) noexcept nogil:
    cdef uint8_t state = vu_load_relaxed8(&entry.state)
    vu_note8(&entry.state, (state & 0xf) | <uint8_t>(stage << 4))  # X2


cdef inline void note_both(PackedEntry *entry, uint8_t deaths, uint8_t stage) noexcept nogil:
    vu_note8(&entry.state, min(deaths, 0xf) | <uint8_t>(stage << 4))  # X1 and X2 in one


cdef inline void note_untouched(PackedEntry *entry) noexcept nogil:
    vu_note8(&entry.state, 0)  # G1
