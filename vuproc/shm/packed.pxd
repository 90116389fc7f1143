"""C interface of the packed ring."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t

from vuproc.shm.packed_fetching cimport PackedFetching


@cython.final
cdef class PackedRing(PackedFetching):
    cdef uint16_t shown_flags      # what our event area has

    cdef bint wants_call(self, uint32_t slots) noexcept nogil
    cdef void mark_published(self, uint16_t old) noexcept nogil
