"""C interface of the split ring."""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from vuproc.shm.inflight cimport Entry, Header, SplitRecord
from vuproc.shm.request cimport Chain
from vuproc.shm.ring cimport Ring


@cython.final
cdef class SplitRing(Ring):
    cdef uint64_t desc_addr        # front-end user addresses, for a new memory table
    cdef uint64_t avail_addr
    cdef uint64_t used_addr
    cdef unsigned char *desc       # all four NULL when there is no guest memory
    cdef unsigned char *avail      # u16 flags, idx, ring[size], used_event
    cdef unsigned char *used       # u16 flags, idx, {u32 id, len}[size], u16 avail_event
    cdef SplitRecord record        # keeps the next two, which are NULL when there is none
    cdef Header *log
    cdef Entry *entries
    cdef uint64_t counter          # of the next fetch
    cdef uint16_t last_batch_head  # the one completed last
    cdef uint16_t mask             # size - 1
    cdef uint16_t seen_avail       # the avail index as it was last loaded
    cdef uint16_t shown_flags      # what used.flags holds

    cdef int take_up(self, SplitRecord record, object base, bint fresh) except -1
    cdef Py_ssize_t fetched_last(self, tuple found)
    cdef void look_ahead(self, bint to_fill) noexcept nogil
    cdef void mark_fetched(self, uint16_t head) noexcept nogil
    cdef void mark_published(self, uint16_t old) noexcept nogil
    cdef int walk(self, uint16_t head, Chain *chain) noexcept nogil
