"""C interface of the disk whose image is mapped."""

from libc.stdint cimport uint64_t

from vuproc.devices.blk_native cimport NativeBlk
from vuproc.shm.request cimport Chain


cdef class MapBlk(NativeBlk):
    cdef char *image               # all of it
    cdef size_t mapped             # bytes, `size` and what the file system wants behind it
    cdef bint huge                 # hugetlbfs: no write(2), and only whole pages can be holes

    cdef int copy(
        self, Chain *chain, bint out, uint64_t at, uint64_t offset, uint64_t length
    ) noexcept nogil
