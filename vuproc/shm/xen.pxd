"""C interface of the memory of a Xen domain."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from vuproc.shm.memory cimport GuestMemory, Mapping


@cython.final
cdef class XenDevice:
    cdef int fd


@cython.final
cdef class XenMapping(Mapping):
    cdef XenDevice device          # what the grants were mapped by; None: nothing is to be unmapped
    cdef uint64_t index
    cdef uint32_t count


@cython.final
cdef class OnDemand:
    cdef XenDevice device
    cdef uint32_t domid
    cdef readonly uint64_t guest_addr
    cdef readonly uint64_t size


cdef XenMapping map_buffer(
    GuestMemory memory, uint64_t guest_addr, uint64_t length, bint writable
)
