"""C interface of the driver side of a split ring."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vuproc.testing.ring cimport DriverRing, Segment


cdef struct SplitDesc:
    uint64_t addr
    uint32_t len
    uint16_t flags
    uint16_t next


@cython.final
cdef class SplitDriverRing(DriverRing):
    cdef SplitDesc *_desc
    cdef uint16_t *_avail          # flags, idx, ring[size], used_event
    cdef char *_used               # flags, idx, {id, len}[size], avail_event
    cdef uint16_t *_next           # private links of the free list and of chains in flight
    cdef uint16_t *_tail           # last descriptor of the chain whose head is the index
    cdef uint16_t _free_head
    cdef uint16_t _avail_shadow    # entries written
    cdef uint16_t _avail_published # entries the device may see
    cdef uint16_t _used_seen       # entries taken back

    cdef int take(self, unsigned int count) noexcept nogil
    cdef void offer(self, uint16_t head) noexcept nogil
    cdef int _take_or_raise(self, unsigned int count) except -1
