"""C interface of the dirty log: marking pages without the GIL."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t

from vuproc.shm.memory cimport Mapping


cdef enum:
    # vhost-user, "Migration": VHOST_LOG_PAGE is 0x1000, whatever the host's pages are.
    LOG_PAGE_SHIFT = 12


@cython.final
cdef class DirtyLog:
    cdef Mapping mapping
    cdef uint8_t *bits             # `size` bytes, mapped as long as `mapping` lives
    cdef uint64_t pages            # that the log has a bit for
    cdef readonly uint64_t ignored # pages that it has none for

    cdef void mark_range(self, uint64_t guest_addr, uint64_t length) noexcept nogil
