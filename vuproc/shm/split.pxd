"""C interface of the split ring."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vuproc.shm.request cimport Chain
from vuproc.shm.ring cimport Ring


cdef struct Descriptor:
    uint64_t addr
    uint32_t len
    uint16_t flags
    uint16_t next


@cython.final
cdef class SplitRing(Ring):
    cdef uint64_t desc_addr        # front-end user addresses, for a new memory table
    cdef uint64_t avail_addr
    cdef uint64_t used_addr
    cdef unsigned char *desc       # all four NULL when there is no guest memory
    cdef unsigned char *avail      # u16 flags, idx, ring[size], used_event
    cdef unsigned char *used       # u16 flags, idx, {u32 id, len}[size], u16 avail_event
    cdef Descriptor *copied        # private copy of an indirect table, `limit` entries
    cdef uint16_t mask             # size - 1
    cdef uint16_t seen_avail       # the avail index as it was last loaded
    cdef uint16_t shown_flags      # what used.flags holds
    cdef bint event_idx
    cdef bint indirect
    cdef bint evaluated            # the driver's used_event was compared at the last publication

    cdef void mark_fetched(self, uint16_t head) noexcept nogil
    cdef int fault(self, const char *cause) noexcept nogil
    cdef int walk(self, uint16_t head, Chain *chain) noexcept nogil
    cdef int copy_table(self, uint64_t addr, uint32_t length) noexcept nogil
