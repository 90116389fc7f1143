# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The disk whose image is mapped: requests are copies, without a system call."""

from libc.errno cimport EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from posix.mman cimport (
    MAP_FAILED,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munmap,
)
from posix.uio cimport iovec

from vuproc.devices.blk_native cimport HEADER_BYTES, SECTOR, TYPE_OUT, Header, NativeBlk
from vuproc.shm.atomics cimport vu_prefetch, vu_prefetch_to_write
from vuproc.shm.failures cimport os_error
from vuproc.shm.native cimport IOV_MAX, cut_pieces, read_file
from vuproc.shm.request cimport Chain

cdef extern from "guard.h" nogil:
    int vu_guard_install()
    int vu_guarded_copy(const iovec *pieces, int count, char *flat, int gather)
    int vu_guarded_clear(char *flat, size_t length)

cdef extern from "<sys/mman.h>" nogil:
    int MADV_DONTDUMP
    int MADV_DONTFORK
    int MADV_HUGEPAGE

cdef extern from "<sys/vfs.h>" nogil:
    cdef struct Facts "statfs":
        long f_type
        long f_bsize
    int fstatfs(int fd, Facts *facts)

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <linux/magic.h>

    #ifndef RAMFS_MAGIC
    #define RAMFS_MAGIC 0x858458f6
    #endif
    #ifndef HUGETLBFS_MAGIC
    #define HUGETLBFS_MAGIC 0x958458f6
    #endif

    /* STATX_ATTR_DAX, Linux 5.8: later than the headers of some. */
    static int vu_is_dax(int fd)
    {
        struct statx about;
        if (statx(fd, "", AT_EMPTY_PATH, 0, &about) != 0)
            return 0;
        return (about.stx_attributes & 0x00200000) != 0;
    }
    """
    long TMPFS_MAGIC
    long RAMFS_MAGIC
    long HUGETLBFS_MAGIC
    bint vu_is_dax(int fd)

cdef enum:
    # Most headers that are looked at together.
    EXPECTED = 8


def is_memory(int fd):
    """Whether an open file lies in memory."""
    cdef Facts facts
    if fstatfs(fd, &facts) < 0:
        raise os_error(errno)
    return facts.f_type in (TMPFS_MAGIC, RAMFS_MAGIC, HUGETLBFS_MAGIC) or vu_is_dax(fd)


cdef class MapBlk(NativeBlk):
    """Serves an open image by copies between its mapping and guest memory."""

    def __cinit__(self, int fd, uint64_t size, *, bint readonly=False, **rest):
        cdef Facts facts
        cdef void *base
        if fstatfs(fd, &facts) < 0 or vu_guard_install() < 0:
            raise os_error(errno)
        self.huge = facts.f_type == HUGETLBFS_MAGIC
        self.mapped = size
        if self.huge:
            # It is mapped, and has to be unmapped, by whole pages.
            self.mapped += -size % <uint64_t>facts.f_bsize
        base = mmap(
            NULL, self.mapped, PROT_READ if readonly else PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0
        )
        if base == MAP_FAILED:
            raise os_error(errno)
        self.image = <char *>base
        self.expects = True
        # Hints. A core file is not to hold somebody's disk, and a program that is started needs none.
        madvise(base, self.mapped, MADV_DONTDUMP)
        madvise(base, self.mapped, MADV_DONTFORK)
        madvise(base, self.mapped, MADV_HUGEPAGE)

    def __dealloc__(self):
        if self.image != NULL:
            munmap(self.image, self.mapped)

    cdef void expect(self, const iovec *firsts, int count) noexcept nogil:
        # The page of the image that a copy begins with is in no table of the processor's, and in
        # none of its caches. A header may be another by the time that it is served.
        cdef iovec pieces[EXPECTED]
        cdef Header headers[EXPECTED]
        cdef const char *start
        cdef int i, known = 0
        for i in range(min(count, <int>EXPECTED)):
            if firsts[i].iov_len >= sizeof(Header):
                pieces[known].iov_base = firsts[i].iov_base
                pieces[known].iov_len = sizeof(Header)
                known += 1
        # SAFETY: so many bytes are in each buffer, and there is room for as many headers.
        if vu_guarded_copy(pieces, known, <char *>headers, True) < 0:
            return
        for i in range(known):
            if headers[i].sector >= self.size / SECTOR:
                continue
            # SAFETY: the sector is inside the disk, all of which is mapped; and this is no access.
            start = self.image + headers[i].sector * SECTOR
            if headers[i].kind == TYPE_OUT:
                vu_prefetch_to_write(start)
            else:
                vu_prefetch(start)

    cdef int64_t read(
        self, Chain *chain, uint64_t offset, uint64_t length, uint8_t *status
    ) noexcept nogil:
        cdef int reason
        # A hole reads as zeros, and a mapping has to have a page for that, which a full tmpfs has not.
        # A call needs none; it fails as well where the image or the guest's memory is missing.
        if self.copy(chain, False, 0, offset, length) < 0:
            if read_file(chain, 0, length, self.fd, offset, &reason) < length:
                return self.end(EIO, 0, status)
        return self.end(0, length, status)

    cdef int64_t write(
        self, Chain *chain, uint64_t offset, uint64_t length, uint8_t *status
    ) noexcept nogil:
        if self.copy(chain, True, HEADER_BYTES, offset, length) < 0:
            return self.end(EIO, 0, status)
        return self.end(0 if self.cached else self.sync(), 0, status)

    cdef int copy(
        self, Chain *chain, bint out, uint64_t at, uint64_t offset, uint64_t length
    ) noexcept nogil:
        # The bytes from `at` on of the chain's readable part (out), or of its writable one.
        cdef iovec pieces[IOV_MAX]
        cdef uint64_t total
        cdef int count, i
        while length:
            count = cut_pieces(chain, not out, at, length, pieces, IOV_MAX)
            total = 0
            for i in range(count):
                total += pieces[i].iov_len
            if total == 0:
                return -1
            # SAFETY: `inside` has compared offset and length with `size`, of which all is mapped.
            # What the file has no bytes for is SIGBUS, as is guest memory that has gone.
            if vu_guarded_copy(pieces, count, self.image + offset, out) < 0:
                return -1
            at += total
            offset += total
            length -= total
        return 0

    cdef int write_zeroes(self, uint64_t offset, uint64_t length, bint unmap) noexcept nogil:
        # Of huge pages the kernel takes whole ones only (before Linux 5.19), and keeps the rest.
        if self.huge:
            return self.write_zero_bytes(offset, length)
        return NativeBlk.write_zeroes(self, offset, length, unmap)

    cdef int write_zero_bytes(self, uint64_t offset, uint64_t length) noexcept nogil:
        # SAFETY: as in `copy`.
        return EIO if vu_guarded_clear(self.image + offset, length) < 0 else 0
