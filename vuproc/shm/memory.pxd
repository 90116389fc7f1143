"""C interface of guest memory: translation without the GIL."""

from libc.stdint cimport uint64_t
from posix.uio cimport iovec


cdef enum:
    NOT_MAPPED = -1                # what `translate` answers for a range with a hole in it
    NO_ROOM = -2                   # and for a range of more pieces than the caller takes
    NO_MAPPING = -3                # in place of a descriptor: whoever derives from Mapping maps


cdef struct Region:
    uint64_t guest_addr
    uint64_t size                  # never 0; guest_addr + size and user_addr + size do not wrap
    uint64_t user_addr
    unsigned char *host            # size bytes, mapped read-write as long as the table lives


cdef class Mapping:
    cdef void *_base               # what mmap gave; NULL when nothing is mapped
    cdef size_t _length
    cdef unsigned char *data       # the bytes asked for, inside the mapping
    cdef readonly Py_ssize_t size

    cdef object view_of(self, unsigned char *start, Py_ssize_t length, bint readonly)


cdef class GuestMemory:
    cdef Region *table             # by guest address, no overlaps
    cdef Py_ssize_t count
    cdef tuple mappings            # mappings[i] holds table[i].host
    cdef readonly tuple on_demand  # what is mapped while a request needs it (`xen.OnDemand`)

    cdef Py_ssize_t find(self, uint64_t guest_addr) noexcept nogil
    cdef int translate(
        self, uint64_t guest_addr, uint64_t length, iovec *out, int room
    ) noexcept nogil
    cdef Py_ssize_t find_user(self, uint64_t user_addr) noexcept nogil
    cdef uint64_t guest_of(self, void *host) noexcept nogil
    cdef unsigned char *user(self, uint64_t user_addr, uint64_t length) noexcept nogil
    cdef object view_host(self, unsigned char *start, Py_ssize_t length, bint readonly)
    cdef GuestMemory holding(self, list mappings)
    cdef bint keeps(self, GuestMemory other)
