"""C interface of the loop over requests that Python serves by the batch."""

from libc.stdint cimport uint8_t

from vuproc.shm.handling cimport Handling
from vuproc.shm.request cimport Request


cdef class Batching(Handling):
    cdef bint gathered             # `handle_batch` runs, and these of its requests are its own:
                                   # open, and not timed by themselves (`started` is 0)
    cdef list spare                # Requests that are to be opened anew; None: there are none

    cdef list fetch_some(self, int most, int *got)
    cdef void keep(self, list requests) noexcept
    cdef void gather(self, Request request, uint8_t attempts) noexcept
    cdef int serve_together(self, list requests, object handle_batch, object on_error) except -1
    cdef int fail_together(self, list requests, object on_error, object error) except -1
