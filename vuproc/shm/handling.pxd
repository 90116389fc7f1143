"""C interface of the loop over requests that handlers in Python serve."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.request cimport Chain, Request
from vuproc.shm.uring_work cimport UringWork


cdef class Handling(UringWork):
    cdef public object on_skip
    cdef void *current             # the Request inside `handle`; borrowed
    cdef bint draining
    cdef int opening               # a head that was fetched and has no Request yet; -1: none
    cdef list from_threads         # Requests that other threads have finished, to be completed
    cdef public int waker          # an eventfd that is written to for each of them; -1: none

    cdef bint begin(self, str what) except -1
    cdef bint wanted(self) noexcept nogil
    cdef void end_turn(self) noexcept
    cdef Request request_of(self, Chain *chain, uint64_t order)
    cdef GuestMemory memory_of(self, uint16_t head)
    cdef int serve(
        self, Request request, object handle, object on_error, uint8_t attempts, object reason
    ) except -1
    cdef int take_from_threads(self) except -1
    cdef void note_elsewhere(self, Request request) noexcept
