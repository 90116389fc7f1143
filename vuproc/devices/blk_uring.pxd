"""C interface of the disk over io_uring."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.devices.blk_native cimport NativeBlk
from vuproc.shm.request cimport Chain
from vuproc.shm.transfers cimport Operation


cdef struct Pending:
    uint64_t length                # bytes that are to be moved
    uint8_t *status                # where the answer goes, in guest memory
    uint8_t operation


cdef class UringBlk(NativeBlk):
    cdef Pending **pending         # by queue and head; `rooms` queues, NULL for those without one
    cdef int rooms
    cdef int begun                 # since the kernel was last told

    cdef bint begin(
        self, Operation operation, Chain *chain, const iovec *pieces, int count, uint64_t offset,
        uint64_t length, uint32_t flags, uint8_t *status,
    ) noexcept nogil
