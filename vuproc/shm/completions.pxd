"""C interface of the far end of a ring: what was completed, and how the driver hears of it."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vuproc.shm.counters cimport QueueCounters
from vuproc.shm.request cimport RequestOwner


cdef enum:
    BATCH = 64                     # most completions published by one store of the used index
    BATCH_NS = 100000              # and the longest that one waits for others
    CALL_NS = 400000               # the longest that a call waits, with more to do than to tell


cdef struct Completion:
    uint16_t head
    uint32_t length


cdef class Completions(RequestOwner):
    cdef QueueCounters counters
    cdef Py_ssize_t flying         # fetched and not completed
    cdef Completion batch[BATCH]   # completed and not published
    cdef int batched
    cdef uint64_t batch_since      # ns, when the oldest of them was completed
    cdef bint owed                 # shown, and the driver wants a call for it
    cdef uint64_t owed_since       # ns
    cdef int unnotified                # shown since then
    cdef int call_fd               # -1: none
    cdef uint64_t now              # ns, the last look at the clock

    # No GIL, no Python objects.
    cdef void complete(
        self, uint16_t head, uint64_t written, uint64_t read, uint64_t nanoseconds
    ) noexcept nogil
    cdef int flush(self) noexcept nogil
    cdef void show(self) noexcept nogil
    cdef void signal(self) noexcept nogil
    cdef void pace(self, uint64_t step, int most) noexcept nogil
    cdef bint call_is_due(self, uint64_t step) noexcept nogil

    # The layout's part: publish the batch, and say whether the driver wants a call for it.
    cdef bint commit(self) noexcept nogil
    # And how many requests the driver has waiting, as far as a look without obligations tells.
    cdef uint16_t backlog(self) noexcept nogil
