"""C interface of a queue's io_uring; what native callers do with it is in `transfers`."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from vuproc.shm.transfers cimport Operation, Transfers


@cython.final
cdef class Uring(Transfers):
    cdef dict buffers              # by tag; of Python callers

    cdef int begin_python(
        self, Operation operation, int file, object buffers, uint64_t offset, uint32_t flags,
        uint64_t tag,
    ) except -1
