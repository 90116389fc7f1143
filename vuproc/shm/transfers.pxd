"""C interface of io_uring: what a ring or a native device begins and takes back."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec


cdef extern from *:
    # uring.h has it; callers need neither that nor the kernel's headers.
    ctypedef struct Kernel "struct vu_uring"


cdef enum Operation:
    READ = 0
    WRITE = 1
    SYNC = 2                       # fdatasync; no pieces, no offset


cdef enum:
    PIECES = 4                     # kept inside a transfer: a page-aligned request has one
    FILES = 4                      # most registered files
    OUTCOMES = 64                  # what callers take back at a time


cdef struct Outcome:
    # What became of a transfer: all bytes, or fewer at the end of the file or with an error.
    uint64_t tag
    uint64_t moved                 # bytes, from the first one on
    int error                      # errno of what ended it; 0: none


cdef struct Transfer:
    uint64_t tag
    uint64_t offset                # in the file, of the first byte that is left
    uint64_t left                  # bytes
    uint64_t moved
    iovec *pieces                  # inline_pieces, or allocated
    uint32_t first                 # the piece at which what is left begins
    uint32_t count
    uint32_t flags                 # RWF_*
    uint32_t next                  # of the free ones, or of those waiting for an entry
    uint8_t operation
    uint8_t file                   # index of a registered file
    uint8_t vain                   # tries in a row that moved nothing
    uint8_t busy
    uint8_t epoch                  # of the counters, at its begin
    iovec inline_pieces[PIECES]


cdef class Transfers:
    cdef Kernel *kernel            # NULL: closed
    cdef readonly int entries      # most transfers at a time
    cdef readonly int in_flight    # begun, and not taken back by `reap`
    cdef int fds[FILES]            # as given: what a caller knows the files by
    cdef int kept[FILES]           # the same files, open for as long as the ring is
    cdef int file_count            # of both
    cdef Transfer *transfers
    cdef uint32_t free             # first of a list; entries: none
    cdef uint32_t fresh            # from here on never used
    cdef uint32_t waiting          # first of those that found no entry; entries: none
    cdef uint32_t waiting_last
    cdef bint finishing            # what comes back is over, whole or not
    cdef object counters           # what holds the next two; None: nobody looks, `unseen` does
    cdef uint64_t *epoch
    cdef uint64_t *handed          # EPOCHS of them
    cdef uint64_t unseen[9]

    cdef int index_of(self, int fd) noexcept nogil
    cdef int begin(
        self, Operation operation, int file, const iovec *pieces, uint32_t count, uint64_t offset,
        uint32_t flags, uint64_t tag,
    ) noexcept nogil
    cdef int submit(self) noexcept nogil
    cdef int reap(self, Outcome *outcomes, int room) noexcept nogil
    cdef bint unsubmitted(self) noexcept nogil
    cdef bint ready(self) noexcept nogil
    cdef int wait(self) noexcept nogil
    cdef int cancel(self) noexcept nogil
    cdef void finish(self) noexcept nogil
    cdef void end(self) noexcept nogil

    cdef void push_or_queue(self, uint32_t slot) noexcept nogil
    cdef bint push(self, uint32_t slot) noexcept nogil
    cdef int enter(self, unsigned complete, unsigned flags) noexcept nogil
