"""C interface of what io_uring does of a ring's requests."""

from libc.stdint cimport uint64_t

from vuproc.shm.fetching cimport Fetching
from vuproc.shm.request cimport Request


cdef class UringWork(Fetching):
    cdef int submit(self) except -1
    # The handler, or the kernel for it, has failed: the request is answered by `on_error`.
    cdef int request_failed(self, Request request, object on_error, object error) except -1
    cdef void abandon(self) noexcept
    # The head of a request that io_uring has, by its tag.
    cdef uint64_t head_of(self, uint64_t tag)
