"""C interface of the driver ring, for the load generator and for nobody else."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef struct SplitDesc:
    uint64_t addr
    uint32_t len
    uint16_t flags
    uint16_t next


cdef enum:
    DESC_NEXT = 1
    DESC_WRITE = 2
    DESC_INDIRECT = 4


cdef class DriverRing:
    cdef object _memory            # keeps the buffer's owner alive
    cdef readonly unsigned int size
    cdef readonly bint event_idx
    cdef SplitDesc *_desc
    cdef uint16_t *_avail          # flags, idx, ring[size], used_event
    cdef char *_used               # flags, idx, {id, len}[size], avail_event
    cdef uint16_t *_next           # private links of the free list and of chains in flight
    cdef uint16_t *_tail           # last descriptor of the chain whose head is the index
    cdef uint16_t *_count          # descriptors of the chain with this head; 0 = not in flight
    cdef uint16_t _free_head
    cdef unsigned int _free
    cdef uint16_t _avail_shadow    # entries written
    cdef uint16_t _avail_published # entries the device may see
    cdef uint16_t _used_seen       # entries taken back

    cdef int take(self, unsigned int count) noexcept nogil
    cdef void offer(self, uint16_t head) noexcept nogil
    cdef bint publish_entries(self) noexcept nogil
    cdef int reap_one(self, uint32_t *id, uint32_t *length) noexcept nogil
    cdef bint arm_calls(self) noexcept nogil
    cdef void disarm_calls(self) noexcept nogil
    cdef int _take_or_raise(self, unsigned int count) except -1
    cdef int _fill(self, SplitDesc *desc, object segment, bint more, uint16_t next) except -1
