"""C interface of a driver ring of either layout, for the load generator."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef struct Segment:
    uint64_t addr                  # guest-physical
    uint32_t len
    uint32_t flags                 # DESC_WRITE or 0


cdef enum:
    # Bits of a descriptor's flags in both layouts, and the largest number of descriptors of a ring.
    DESC_NEXT = 1
    DESC_WRITE = 2
    DESC_INDIRECT = 4
    MAX_SIZE = 32768


cdef class DriverRing:
    cdef object _memory            # keeps the buffer's owner alive
    cdef readonly unsigned int size
    cdef readonly bint event_idx
    cdef str _name                 # what a request is called by: a head, or a buffer id
    cdef unsigned int _free        # descriptors not in a chain
    cdef uint16_t *_count          # descriptors of the request with this name; 0 = not in flight

    cdef char *_attach(self, object memory, unsigned int size, bint event_idx, areas) except NULL

    # Without the GIL. Every layout has all of these.
    cdef int put(self, const Segment *chain, unsigned int count) noexcept nogil
    cdef int put_indirect(
        self, const Segment *chain, unsigned int count, char *table, uint64_t address
    ) noexcept nogil
    cdef bint publish_entries(self) noexcept nogil
    cdef int reap_one(self, uint32_t *name, uint32_t *length) noexcept nogil
    cdef bint used_waits(self) noexcept nogil
    cdef bint arm_calls(self) noexcept nogil
    cdef void disarm_calls(self) noexcept nogil
    cdef uint32_t base_now(self) noexcept nogil
    cdef void begin_here(self) noexcept nogil
