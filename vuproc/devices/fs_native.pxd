"""C interface of the READs and WRITEs of a file system that are served without Python."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from vuproc.shm.native cimport NativeDevice
from vuproc.shm.request cimport Chain


cdef enum:
    # Open files that are known here; one whose place is taken by another is Python's for a while.
    PLACES = 1024


cdef struct OpenFile:
    uint64_t node
    uint64_t handle
    int fd                         # borrowed
    bint known
    bint used                      # since `take_used`


cdef struct InHeader:
    # linux/fuse.h: struct fuse_in_header.
    uint32_t length
    uint32_t opcode
    uint64_t unique
    uint64_t node
    uint32_t uid
    uint32_t gid
    uint32_t pid
    uint32_t padding


cdef struct OutHeader:
    # linux/fuse.h: struct fuse_out_header.
    uint32_t length
    int32_t error
    uint64_t unique


cdef struct Io:
    # linux/fuse.h: struct fuse_read_in, and struct fuse_write_in, whose flags do not matter here.
    uint64_t handle
    uint64_t offset
    uint32_t size
    uint32_t flags
    uint64_t owner
    uint32_t open_flags
    uint32_t padding


cdef struct Moves:
    # A READ or WRITE as it came: what is decided on.
    InHeader header
    Io io


cdef class NativeFs(NativeDevice):
    cdef OpenFile files[PLACES]
    cdef object words              # what `word` lies in, exported
    cdef const uint64_t *word      # of the mount that is now; NULL: nothing is served here
    cdef uint64_t session          # of the mount whose files are known
    cdef bint writable

    cdef int64_t read(self, Chain *chain, Moves *asked, int fd) noexcept nogil
    cdef int64_t write(self, Chain *chain, Moves *asked, int fd) noexcept nogil
    cdef int64_t answer(
        self, Chain *chain, Moves *asked, int reason, uint64_t moved
    ) noexcept nogil
    cdef OpenFile *find(self, uint64_t node, uint64_t handle) noexcept nogil
