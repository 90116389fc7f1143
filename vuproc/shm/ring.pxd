"""C interface of what split and packed rings share; a layout fills in the methods of layout.pxd."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.counters cimport QueueCounters
from vuproc.shm.iotlb cimport Iotlb
from vuproc.shm.native_pulling cimport NativePulling


cdef enum:
    # virtio 1.3, 2.7 and 2.8: the largest queue.
    MAX_SIZE = 32768


cdef struct Descriptor:
    uint64_t addr
    uint32_t len
    uint16_t flags                 # of a packed one: the buffer's id
    uint16_t next                  # of a packed one: the flags


cdef class Ring(NativePulling):
    cdef Descriptor *copied        # private copy of an indirect table, `limit` entries; or NULL
    cdef bint indirect
    cdef bint event_idx
    cdef bint evaluated            # the driver's wish was compared at the last publication

    cdef int prepare(
        self, int queue, Py_ssize_t size, Py_ssize_t chain_limit, QueueCounters counters,
        uint64_t features, Iotlb iotlb,
    ) except -1
    cdef int be_traced(self, QueueCounters counters) except -1
    cdef int fault(self, const char *cause) noexcept nogil
    cdef int look_up(
        self, uint16_t head, uint64_t addr, uint64_t length, bint write, iovec *out, int room
    ) noexcept nogil
    cdef int copy_table(self, uint64_t addr, uint32_t length) noexcept nogil
    cdef int map_granted(
        self, uint16_t head, uint64_t addr, uint64_t length, bint write, iovec *out
    ) noexcept
    cdef int copy_granted(self, uint64_t addr, uint32_t length) noexcept
    cdef int note_outstanding(self) except -1
