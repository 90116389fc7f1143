"""C interface of a cache of I/O virtual addresses."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.memory cimport GuestMemory


cdef enum:
    # As IOTLB messages have them.
    ACCESS_READ = 1
    ACCESS_WRITE = 2

    # What `find_pieces` answers for a range of which some is not known: it is among the misses.
    MISSED = -3
    # Translations that are asked for at a time.
    MISSES_MAX = 64


cdef struct Translation:
    uint64_t first                 # I/O virtual, the first and the last byte
    uint64_t last
    uint64_t user_addr             # of the first; user_addr + last - first does not wrap
    uint8_t access


cdef struct Miss:
    uint64_t iova                  # of a page
    uint8_t access


@cython.final
cdef class Iotlb:
    cdef Translation *table        # by address, no overlaps
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef Py_ssize_t victim         # the next to go when the table is full
    cdef Miss misses[MISSES_MAX]
    cdef int missed

    cdef Py_ssize_t above(self, uint64_t iova) noexcept nogil
    cdef int find_pieces(
        self, GuestMemory memory, uint64_t iova, uint64_t length, uint8_t access, iovec *out,
        int room,
    ) noexcept nogil
    cdef bint note_miss(self, uint64_t iova, uint8_t access) noexcept nogil
    cdef void cut_out(self, Py_ssize_t start, Py_ssize_t end) noexcept nogil
    cdef Py_ssize_t forget(self, uint64_t first, uint64_t last) noexcept nogil
