"""C interface of the loop over requests that a native device serves."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from vuproc.shm.batching cimport Batching
from vuproc.shm.native cimport NativeDevice
from vuproc.shm.request cimport Chain
from vuproc.shm.spin cimport Spin


cdef enum:
    STEP = 8                       # completions that a native device shows at a time, with no call


cdef class NativeServing(Batching):
    cdef NativeDevice device       # None unless `serve_native` was called
    cdef object on_error           # as of `serve_native`
    cdef uint64_t left             # requests that the device has left to its `handle`
    cdef object raised             # what that let through, for whoever calls from Python
    cdef readonly uint64_t hits    # looks before a sleep that have found something

    cdef int attach(self, NativeDevice device) except -1
    cdef int announce(self) noexcept nogil
    cdef bint is_quiet(self)
    # No GIL, no Python objects.
    cdef int serve_batch(
        self, int budget, uint64_t slice_ns, uint64_t spin_ns, int *fetched
    ) noexcept nogil
    cdef int serve_quietly(self, int budget, uint64_t slice_ns, Spin spin) noexcept nogil
    cdef void serve_left(self, Chain *chain, uint8_t attempts) noexcept
    cdef int raise_what_came(self) except -1
    cdef bint await_work(self, uint64_t spin_ns) noexcept nogil
