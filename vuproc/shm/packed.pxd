"""C interface of the packed ring."""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.packed_record cimport PackedEntry, PackedHeader, PackedRecord, Slot
from vuproc.shm.request cimport Chain
from vuproc.shm.ring cimport Ring
from vuproc.shm.walk cimport Walk


@cython.final
cdef class PackedRing(Ring):
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
    cdef uint16_t shown_flags      # what our event area has

    cdef int begin_anew(self, object base) except -1
    cdef bint is_fresh(self) noexcept
    cdef int follow(self) except -1
    cdef bint fetched_last(self, tuple found)
    cdef bint same_descriptor(self, uint16_t place, uint16_t entry) noexcept nogil
    cdef unsigned char *slot(self, uint16_t place) noexcept nogil
    cdef int walk(self, uint16_t head, uint16_t flags, Chain *chain) noexcept nogil
    cdef int take_one(
        self, Walk *walk, uint16_t head, uint64_t addr, uint32_t length, uint16_t flags
    ) noexcept nogil
    cdef int take_table(
        self, Walk *walk, uint16_t head, uint64_t addr, uint32_t length
    ) noexcept nogil
    cdef void put_back(self, uint16_t head) noexcept nogil
    cdef bint wants_call(self, uint32_t slots) noexcept nogil
    cdef void mark_published(self, uint16_t old) noexcept nogil
