# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""What a layout of rings has to fill in, and what happens if it does not."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.missing cimport vu_missing
from vuproc.shm.request cimport Chain, RequestOwner


cdef class Layout(RequestOwner):
    """The base of a ring: its layout, as far as the rest of the ring knows of it."""

    cdef int fetch(self, Chain *chain) noexcept nogil:
        vu_missing("fetch")
        return -1

    cdef int fetch_again(self, uint16_t head, Chain *chain) noexcept nogil:
        vu_missing("fetch_again")
        return -1

    cdef void prefetch(self) noexcept nogil:
        # A hint: a layout may have none to give.
        pass

    cdef void prefetch_to_fill(self) noexcept nogil:
        pass

    cdef bint coming(self, uint16_t after, iovec *first) noexcept nogil:
        return False

    cdef int look(self) noexcept nogil:
        vu_missing("look")
        return -1

    cdef void unfetch(self, uint16_t head) noexcept nogil:
        vu_missing("unfetch")

    cdef void note_begin(self, uint16_t head, uint8_t attempts) noexcept nogil:
        vu_missing("note_begin")

    cdef void note_attempts(self, uint16_t head, uint8_t attempts) noexcept nogil:
        vu_missing("note_attempts")

    cdef void note_stage(self, uint16_t head, uint8_t stage) noexcept nogil:
        vu_missing("note_stage")

    cdef void note_given_back(self, uint16_t head) noexcept nogil:
        vu_missing("note_given_back")

    cdef void note_blamed(self, uint16_t head) noexcept nogil:
        vu_missing("note_blamed")

    cdef void note_end(self) noexcept nogil:
        vu_missing("note_end")

    cdef int ask_kicks(self) noexcept nogil:
        vu_missing("ask_kicks")
        return -1

    cdef void refuse_kicks(self) noexcept nogil:
        vu_missing("refuse_kicks")

    cdef bint available(self) noexcept nogil:
        vu_missing("available")
        return False

    cdef int bind(self, GuestMemory memory) except -1:
        vu_missing("bind")
        return -1

    cdef void unbind(self) noexcept:
        vu_missing("unbind")

    cdef uint16_t place(self) noexcept nogil:
        vu_missing("place")
        return 0

    cdef uint32_t base(self) noexcept nogil:
        vu_missing("base")
        return 0

    cdef bint commit(self) noexcept nogil:
        vu_missing("commit")
        return False

    cdef uint16_t backlog(self) noexcept nogil:
        vu_missing("backlog")
        return 0

    cdef bint has_waiting(self, uint32_t count) noexcept nogil:
        vu_missing("has_waiting")
        return False

    cdef uint64_t used_bytes(self) noexcept nogil:
        vu_missing("used_bytes")
        return 0
