"""C interface of a ring that a native device pulls from."""

from vuproc.shm.native_serving cimport NativeServing
from vuproc.shm.request cimport Chain, Request


cdef class NativePulling(NativeServing):
    cdef public bint may_be_pulled # the ring is enabled, and no order waits for it to be idle

    # What was pulled and is for Python: as `take` hands it out.
    cdef Request as_request(self, Chain *chain)

    cdef int pull_again(self, Chain *chain) noexcept
