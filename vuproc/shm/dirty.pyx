# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The dirty log of a live migration: which pages of guest memory the device has written to."""

cimport cython
from libc.stdint cimport UINT64_MAX, uint8_t, uint64_t

from vuproc.shm.atomics cimport vu_or8
from vuproc.shm.memory cimport Mapping


@cython.final
cdef class DirtyLog:
    """One bit a page of guest memory, shared with the front-end and with other workers."""

    def __cinit__(self, int fd, object size, object offset=0):
        self.mapping = Mapping(fd, size, offset)
        # SAFETY: `size` bytes are mapped as long as `mapping` lives.
        self.bits = self.mapping.data
        self.pages = <uint64_t>self.mapping.size * 8

    @property
    def size(self):
        """Bytes of the log."""
        return self.mapping.size

    def mark(self, uint64_t guest_addr, uint64_t length):
        """Set the bits of the pages in which `length` bytes from `guest_addr` lie."""
        self.mark_range(guest_addr, length)

    cdef void mark_range(self, uint64_t guest_addr, uint64_t length) noexcept nogil:
        # After the bytes were written: pairs with the front-end, which takes a bit away first and
        # reads its page then. Each bit is set by an atomic `or` of its byte, for the front-end and
        # other workers change its neighbours, and without a look whether it is set already: one
        # that is seen may have been taken, and the page read, before our bytes were visible.
        cdef uint64_t last, page, end, here
        if length == 0:
            return
        last = guest_addr + (length - 1)
        if last < guest_addr:
            last = UINT64_MAX
        page = guest_addr >> LOG_PAGE_SHIFT
        last >>= LOG_PAGE_SHIFT
        if last >= self.pages:
            self.ignored += last - max(page, self.pages) + 1
            if page >= self.pages:
                return
            last = self.pages - 1
        end = last + 1
        while page < end:
            # The pages of one byte: bit p % 8 of byte p / 8.
            here = min(end, (page | 7) + 1)
            # SAFETY: page < pages, eight of which are one byte of the mapping.
            vu_or8(self.bits + (page >> 3), <uint8_t>(
                (0xff << (page & 7)) & (0xff >> (7 - ((here - 1) & 7)))
            ))
            page = here
