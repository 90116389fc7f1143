"""C interface of the loop over requests that handlers in Python serve."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from vuproc.shm.counters cimport has_command
from vuproc.shm.fetching cimport Again
from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.request cimport Chain, Request
from vuproc.shm.uring_work cimport UringWork


cdef enum:
    NO_MORE = 2                    # of `next_again`: nothing is left to come again
    SHORT_SLICE = 1000000          # ns: of a turn for whose end others wait


cdef struct Slice:
    # The time of a turn in Python.
    uint64_t end                   # ns
    uint64_t soon                  # ns, if somebody is in a hurry
    uint64_t hurries               # as of the beginning


cdef Slice slice_from(uint64_t now, uint64_t nanoseconds) noexcept nogil
cdef bint is_over(Handling ring, Slice *turn) noexcept nogil


cdef class Handling(UringWork):
    cdef public object on_skip
    cdef void *current             # the Request inside `handle`; borrowed
    cdef bint draining
    cdef int opening               # a head that was fetched and has no Request yet; -1: none
    cdef list from_threads         # Requests that other threads have finished, to be completed
    cdef public int waker          # an eventfd that is written to for each of them; -1: none

    cdef bint begin(self, str what) except -1
    cdef void end_turn(self) noexcept
    cdef Request request_of(self, Chain *chain, uint64_t order)
    cdef int open_request(self, Request request, Chain *chain, uint64_t order) except -1
    cdef GuestMemory memory_of(self, uint16_t head)
    cdef int serve(
        self, Request request, object handle, object on_error, uint8_t attempts, object reason
    ) except -1
    # For a device that pulls. The next of those that come again and may run, or NO_MORE; and of
    # those that were never fetched: if there is none, what was finished is shown to the driver, and
    # it was asked for a kick. Else as `resume` and `fetch`.
    cdef int next_again(self, Chain *chain, Again *which) except -2
    cdef int fetch_or_arm(self, Chain *chain) noexcept nogil
    cdef int take_from_threads(self) except -1
    cdef void note_elsewhere(self, Request request) noexcept


cdef inline bint is_wanted(Handling ring) noexcept nogil:
    # The worker's loop has something to do besides the requests.
    return ring.counters is not None and has_command(ring.counters)


cdef inline void complete_finished(Handling ring, Request request, uint64_t took) noexcept:
    # It is finished, in so many ns, and the thread has the ring's turn.
    if ring.granted is not None:
        # What was mapped for it goes before the driver hears of its end.
        request.memory = None
    ring.complete(
        request._head,
        request.used,
        request.total_readable - request.reading.left,
        took,
    )
