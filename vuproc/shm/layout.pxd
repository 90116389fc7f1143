"""C interface of a ring's layout: how it is read, published and recorded.

A layout derives from `Ring` and fills in all of this but the hints. What it leaves out ends the
process at the first call.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.request cimport Chain, RequestOwner


cdef class Layout(RequestOwner):
    cdef int bind(self, GuestMemory memory) except -1
    cdef void unbind(self) noexcept

    # Where the ring is: the next entry to fetch, and the base with which it would go on, as
    # SET_VRING_BASE has it.
    cdef uint16_t place(self) noexcept nogil
    cdef uint32_t base(self) noexcept nogil

    # Fetching. Answers: 1 there is one, 0 there is none, -1 broken (the cause is set).
    cdef int fetch(self, Chain *chain) noexcept nogil
    cdef int fetch_again(self, uint16_t head, Chain *chain) noexcept nogil
    cdef int look(self) noexcept nogil
    cdef bint available(self) noexcept nogil
    # Hints that more is going to be fetched, to be read or to be filled. A layout may have none to
    # give.
    cdef void prefetch(self) noexcept nogil
    cdef void prefetch_to_fill(self) noexcept nogil
    # Whether the request so many after the next one is there, as far as is known, and its first
    # buffer. That lies in guest memory, and holds anything.
    cdef bint coming(self, uint16_t after, iovec *first) noexcept nogil
    # How many requests the driver has waiting, as far as a look without obligations tells.
    cdef uint16_t backlog(self) noexcept nogil
    # Whether they are about so many: a look at one place.
    cdef bint has_waiting(self, uint32_t count) noexcept nogil
    # Take the fetch of `head` back: it is the last one that was not taken back yet.
    cdef void unfetch(self, uint16_t head) noexcept nogil

    # Publish the batch, mark what that has written of the used ring if writes are logged, and say
    # whether the driver wants a call for it.
    cdef bint commit(self) noexcept nogil
    # Bytes of the area that only the device writes.
    cdef uint64_t used_bytes(self) noexcept nogil

    # Kicks.
    cdef int ask_kicks(self) noexcept nogil
    cdef void refuse_kicks(self) noexcept nogil

    # The record, if there is one.
    cdef void note_begin(self, uint16_t head, uint8_t attempts) noexcept nogil
    cdef void note_attempts(self, uint16_t head, uint8_t attempts) noexcept nogil
    cdef void note_stage(self, uint16_t head, uint8_t stage) noexcept nogil
    cdef void note_given_back(self, uint16_t head) noexcept nogil
    cdef void note_blamed(self, uint16_t head) noexcept nogil
    cdef void note_end(self) noexcept nogil
