# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The disk served without Python: requests parsed, checked, and carried out by blocking calls."""

from libc.errno cimport EINTR, EINVAL, EIO, ENOSYS, ENOTTY, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from vuproc.shm.native cimport (
    NativeDevice,
    copy_in,
    copy_out,
    read_file,
    write_file,
)
from vuproc.shm.request cimport Chain

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, int64_t offset, int64_t length)

cdef extern from "<linux/falloc.h>" nogil:
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE
    int FALLOC_FL_ZERO_RANGE

cdef extern from "<linux/fs.h>" nogil:
    unsigned long BLKDISCARD
    unsigned long BLKZEROOUT

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, void *argument)

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)
    Py_ssize_t pwrite(int fd, const void *data, size_t n, int64_t offset)

# virtio 1.3, 5.2.6 (spec/blk.py has them for Python).
cdef enum:
    TYPE_FLUSH = 4
    TYPE_GET_ID = 8
    TYPE_DISCARD = 11
    TYPE_WRITE_ZEROES = 13
    UNMAP = 1
    # A request has at most so many ranges; blk.py tells the driver as many, or fewer.
    MOST_RANGES = 64
    # Zeros written at a time where the kernel cannot zero a range by itself.
    ZERO_CHUNK = 65536

MAX_RANGES = MOST_RANGES


cdef struct Segment:
    uint64_t sector
    uint32_t count
    uint32_t flags


cdef uint8_t zeros[ZERO_CHUNK]


cdef class NativeBlk(NativeDevice):
    """Serves an open image of `size` bytes. `fd` is borrowed."""

    def __cinit__(
        self,
        int fd,
        uint64_t size,
        *,
        uint64_t block_size=SECTOR,
        bint block_device=False,
        bint readonly=False,
        bint cached=True,
        int buffered=-1,
        bytes serial=b"",
        object discard=(0, 0),
        object write_zeroes=(0, 0),
    ):
        cdef bytes padded = serial[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self.fd = fd
        self.buffered = fd if buffered < 0 else buffered
        self.size = size
        self.block_mask = block_size - 1
        self.block_device = block_device
        self.readonly = readonly
        self.cached = cached
        memcpy(self.serial, <const char *>padded, ID_BYTES)
        self.discard_sectors, self.discard_ranges = discard
        self.zeroes_sectors, self.zeroes_ranges = write_zeroes
        if max(self.discard_ranges, self.zeroes_ranges) > MOST_RANGES:
            raise ValueError(f"more than {MOST_RANGES} ranges a request")

    cdef int64_t serve(self, Chain *chain) noexcept nogil:
        cdef Header header
        cdef iovec *last
        cdef uint8_t *status
        cdef uint64_t length
        if chain.writable == 0:
            # Nowhere to put a status: the driver gets its descriptors back and nothing else.
            return 0
        last = chain.pieces + chain.readable_count + chain.writable_count - 1
        while last.iov_len == 0:
            last -= 1
        # SAFETY: the writable pieces are not all empty, so `last` is one of them, with a last byte.
        status = <uint8_t *>last.iov_base + last.iov_len - 1
        if chain.readable < sizeof(Header):
            return self.refuse(STATUS_IOERR, status)
        if chain.pieces[0].iov_len >= sizeof(Header):
            # SAFETY: there is a readable byte, so the first piece is readable, and long enough.
            memcpy(&header, chain.pieces[0].iov_base, sizeof(Header))
        else:
            copy_out(chain, 0, &header, sizeof(Header))
        if header.kind == TYPE_IN:
            length = chain.writable - 1
            if not self.inside(header.sector, length):
                return self.refuse(STATUS_IOERR, status)
            return self.read(chain, header.sector * SECTOR, length, status)
        if header.kind == TYPE_OUT:
            length = chain.readable - sizeof(Header)
            if self.readonly or not self.inside(header.sector, length):
                return self.refuse(STATUS_IOERR, status)
            return self.write(chain, header.sector * SECTOR, length, status)
        return self.serve_rest(chain, header.kind, status)

    cdef int64_t refuse(self, uint8_t answer, uint8_t *status) noexcept nogil:
        status[0] = answer
        return 1

    cdef int64_t end(self, int reason, uint64_t moved, uint8_t *status) noexcept nogil:
        if reason:
            self.fail(reason)
        status[0] = STATUS_IOERR if reason else STATUS_OK
        return moved + 1

    cdef bint inside(self, uint64_t sector, uint64_t length) noexcept nogil:
        # Whole blocks inside the disk. sector <= size / 512, so that nothing below wraps.
        if sector > self.size / SECTOR or length > self.size - sector * SECTOR:
            return False
        return (sector * SECTOR | length) & self.block_mask == 0

    cdef int64_t read(
        self, Chain *chain, uint64_t offset, uint64_t length, uint8_t *status
    ) noexcept nogil:
        cdef int reason
        cdef uint64_t moved = read_file(chain, 0, length, self.fd, offset, &reason)
        if reason == EINVAL and self.buffered != self.fd:
            # The driver's memory is not aligned as O_DIRECT wants it; virtio asks nothing of it.
            moved = read_file(chain, 0, length, self.buffered, offset, &reason)
        if moved < length and reason == 0:
            # The image has become shorter: the driver is told, and nobody else.
            status[0] = STATUS_IOERR
            return moved + 1
        return self.end(reason, moved, status)

    cdef int64_t write(
        self, Chain *chain, uint64_t offset, uint64_t length, uint8_t *status
    ) noexcept nogil:
        cdef int reason
        cdef uint64_t moved = write_file(chain, sizeof(Header), length, self.fd, offset, &reason)
        if reason == EINVAL and self.buffered != self.fd:
            moved = write_file(chain, sizeof(Header), length, self.buffered, offset, &reason)
        if moved < length and reason == 0:
            return self.refuse(STATUS_IOERR, status)
        if reason == 0 and not self.cached:
            reason = self.sync()
        return self.end(reason, 0, status)

    cdef int64_t flush(self, Chain *chain, uint8_t *status) noexcept nogil:
        return self.end(self.sync(), 0, status)

    cdef int64_t serve_rest(self, Chain *chain, uint32_t kind, uint8_t *status) noexcept nogil:
        cdef uint64_t count
        if kind == TYPE_FLUSH:
            return self.flush(chain, status)
        if kind == TYPE_GET_ID:
            count = copy_in(chain, 0, self.serial, min(chain.writable - 1, <uint64_t>ID_BYTES))
            return self.end(0, count, status)
        if kind == TYPE_DISCARD or kind == TYPE_WRITE_ZEROES:
            if self.readonly:
                return self.refuse(STATUS_IOERR, status)
            return self.change_ranges(chain, kind == TYPE_DISCARD, status)
        return self.refuse(STATUS_UNSUPP, status)

    cdef int64_t change_ranges(self, Chain *chain, bint discard, uint8_t *status) noexcept nogil:
        # All ranges are checked, on the copy, before the first is touched.
        cdef Segment segments[MOST_RANGES]
        cdef uint64_t size = chain.readable - sizeof(Header)
        cdef uint64_t ranges = self.discard_ranges if discard else self.zeroes_ranges
        cdef uint64_t sectors = self.discard_sectors if discard else self.zeroes_sectors
        cdef uint32_t flags = 0 if discard else UNMAP
        cdef uint64_t i
        cdef int reason = 0
        if size == 0 or size % sizeof(Segment) or size > ranges * sizeof(Segment):
            return self.refuse(STATUS_IOERR, status)
        # SAFETY: size <= ranges * 16, and `ranges` is at most MOST_RANGES.
        copy_out(chain, sizeof(Header), segments, size)
        for i in range(size / sizeof(Segment)):
            if segments[i].flags & ~flags:
                return self.refuse(STATUS_UNSUPP, status)
            if segments[i].count == 0 or segments[i].count > sectors:
                return self.refuse(STATUS_IOERR, status)
            if not self.inside(segments[i].sector, <uint64_t>segments[i].count * SECTOR):
                return self.refuse(STATUS_IOERR, status)
        for i in range(size / sizeof(Segment)):
            if discard:
                reason = self.discard(
                    segments[i].sector * SECTOR, <uint64_t>segments[i].count * SECTOR
                )
            else:
                reason = self.write_zeroes(
                    segments[i].sector * SECTOR,
                    <uint64_t>segments[i].count * SECTOR,
                    segments[i].flags & UNMAP,
                )
            if reason:
                break
        if reason == 0 and not self.cached:
            reason = self.sync()
        return self.end(reason, 0, status)

    # The calls. They answer an errno, or 0.

    cdef int sync(self) noexcept nogil:
        self.syncs += 1
        while fdatasync(self.fd) < 0:
            if errno != EINTR:
                return errno
        return 0

    cdef int discard(self, uint64_t offset, uint64_t length) noexcept nogil:
        # A file system without holes keeps the data, which a discard allows.
        cdef int reason
        if self.block_device:
            reason = self.control(BLKDISCARD, offset, length)
        else:
            reason = self.allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
        return 0 if lacking(reason) else reason

    cdef int write_zeroes(self, uint64_t offset, uint64_t length, bint unmap) noexcept nogil:
        cdef int reason = EOPNOTSUPP
        if self.block_device:
            reason = self.control(BLKZEROOUT, offset, length)
        else:
            if unmap:
                reason = self.allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
            if lacking(reason):
                reason = self.allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)
        if not lacking(reason):
            return reason
        return self.write_zero_bytes(offset, length)

    cdef int control(
        self, unsigned long operation, uint64_t offset, uint64_t length
    ) noexcept nogil:
        cdef uint64_t area[2]
        area[0] = offset
        area[1] = length
        return errno if ioctl(self.fd, operation, area) < 0 else 0

    cdef int allocate(self, int mode, uint64_t offset, uint64_t length) noexcept nogil:
        while fallocate(self.fd, mode, offset, length) < 0:
            if errno != EINTR:
                return errno
        return 0

    cdef int write_zero_bytes(self, uint64_t offset, uint64_t length) noexcept nogil:
        cdef Py_ssize_t moved
        while length:
            moved = pwrite(self.buffered, zeros, min(length, <uint64_t>ZERO_CHUNK), offset)
            if moved > 0:
                offset += moved
                length -= moved
            elif moved == 0:
                return EIO
            elif errno != EINTR:
                return errno
        return 0


cdef bint lacking(int reason) noexcept nogil:
    # What kernels and file systems say to an operation on a range which they do not have.
    return reason == EOPNOTSUPP or reason == ENOSYS or reason == ENOTTY or reason == EINVAL
