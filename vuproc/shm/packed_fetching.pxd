"""C interface of a packed ring as far as its descriptors are read."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from vuproc.shm.packed_record cimport (
    PackedEntry,
    PackedHeader,
    PackedRecord,
    Slot,
    note_put_back,
)
from vuproc.shm.place cimport SLOT_MASK
from vuproc.shm.request cimport Chain
from vuproc.shm.ring cimport Ring


cdef enum:
    # Where a descriptor has its flags.
    FLAGS_AT = 14


cdef class PackedFetching(Ring):
    cdef uint64_t desc_addr        # front-end user addresses, for a new memory table
    cdef uint64_t driver_addr
    cdef uint64_t device_addr
    cdef unsigned char *desc       # all three NULL when there is no guest memory
    cdef unsigned char *driver     # the driver's event area: u16 off_wrap, flags
    cdef unsigned char *device     # ours
    cdef uint64_t desc_guest       # guest addresses of what we write, for the dirty log
    cdef uint64_t device_guest
    cdef PackedRecord record       # keeps the next three
    cdef PackedHeader *log         # NULL, as the entries, once there is no ring
    cdef PackedEntry *entries
    cdef Slot *slots
    cdef uint64_t counter          # of the next fetch
    cdef uint32_t room             # slots that are not in flight, nor lost
    cdef uint16_t avail            # place of the next descriptor to fetch
    cdef uint16_t free             # the first free entry; `size`: none
    cdef uint16_t chain_slots      # of the request fetched last

    cdef int fetch_chain(self, uint64_t rest, Chain *chain) noexcept nogil
    cdef int fetch_table(self, uint64_t rest, Chain *chain) noexcept nogil
    cdef int fetch_rare(self, uint64_t rest, Chain *chain) noexcept nogil
    cdef int begin_anew(self, object base) except -1
    cdef bint is_fresh(self) noexcept
    cdef int follow(self) except -1
    cdef Py_ssize_t fetched_last(self, tuple found)
    cdef bint same_chain(self, uint16_t place, uint16_t head) noexcept nogil
    cdef bint same_descriptor(self, uint16_t place, uint16_t entry) noexcept nogil


cdef inline unsigned char *slot_at(PackedFetching ring, uint16_t place) noexcept nogil:
    # SAFETY: a place's slot is below the size, as `begin_anew`, `recover` and `advanced` see to
    # it; `bind` checked the whole ring.
    return ring.desc + 16 * <size_t>(place & SLOT_MASK)


cdef inline void put_back(PackedFetching ring, uint16_t head) noexcept nogil:
    # The entries of `head` are the first of the free list, in the record's links and in ours; the
    # caller stores the list's head. A link that is there already, as of what was taken from the
    # list just before, is not stored again: no entry's link changes as long as a request has it.
    cdef uint16_t last = ring.slots[head].last
    if ring.slots[last].next != ring.free:
        note_put_back(ring.entries + last, ring.free)
        ring.slots[last].next = ring.free
    ring.free = head
