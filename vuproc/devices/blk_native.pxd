"""C interface of the native disk: what an engine overrides to move data in another way."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from vuproc.shm.native cimport NativeDevice
from vuproc.shm.request cimport Chain


cdef enum:
    STATUS_OK = 0
    STATUS_IOERR = 1
    STATUS_UNSUPP = 2
    ID_BYTES = 20
    # Of a request's header, which is in front of what is to be written.
    HEADER_BYTES = 16
    # virtio 1.3, 5.2.6.
    SECTOR = 512
    TYPE_IN = 0
    TYPE_OUT = 1


cdef struct Header:
    uint32_t kind
    uint32_t priority
    uint64_t sector


cdef class NativeBlk(NativeDevice):
    cdef int fd                    # borrowed, like the next one
    cdef int buffered              # the same file through the page cache, or the same descriptor
    cdef bint block_device
    cdef bint readonly
    cdef public bint cached        # data need be safe at a flush only
    cdef readonly uint64_t syncs   # calls of fdatasync
    cdef uint64_t size             # bytes of the disk, whole sectors
    cdef uint64_t block_mask       # logical block size - 1
    cdef uint64_t discard_sectors  # most of one range, and most ranges of a request
    cdef uint64_t discard_ranges
    cdef uint64_t zeroes_sectors
    cdef uint64_t zeroes_ranges
    cdef uint8_t serial[ID_BYTES]

    # To override: requests that are checked. `status` is the place of the status byte; whoever
    # completes the request stores it last. Answers as `serve`: bytes written, the status byte
    # included, or DEFERRED. `length` 0 is possible.
    cdef int64_t read(
        self, Chain *chain, uint64_t offset, uint64_t length, uint8_t *status
    ) noexcept nogil
    cdef int64_t write(
        self, Chain *chain, uint64_t offset, uint64_t length, uint8_t *status
    ) noexcept nogil
    cdef int64_t flush(self, Chain *chain, uint8_t *status) noexcept nogil

    # To call. Store what an errno (0: none) means for the status; `moved` bytes and it were written.
    cdef int64_t end(self, int reason, uint64_t moved, uint8_t *status) noexcept nogil

    cdef int64_t refuse(self, uint8_t answer, uint8_t *status) noexcept nogil
    cdef int64_t serve_rest(self, Chain *chain, uint32_t kind, uint8_t *status) noexcept nogil
    cdef int64_t change_ranges(self, Chain *chain, bint discard, uint8_t *status) noexcept nogil
    cdef bint inside(self, uint64_t sector, uint64_t length) noexcept nogil
    cdef int sync(self) noexcept nogil
    cdef int discard(self, uint64_t offset, uint64_t length) noexcept nogil
    cdef int write_zeroes(self, uint64_t offset, uint64_t length, bint unmap) noexcept nogil
    cdef int control(
        self, unsigned long operation, uint64_t offset, uint64_t length
    ) noexcept nogil
    cdef int allocate(self, int mode, uint64_t offset, uint64_t length) noexcept nogil
    cdef int write_zero_bytes(self, uint64_t offset, uint64_t length) noexcept nogil
