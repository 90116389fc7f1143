"""C interface of one request: what a ring fills in and what a native device may use."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.cursor cimport Cursor
from vuproc.shm.extents cimport Extents
from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.transfers cimport Operation
from vuproc.shm.uring cimport Uring


cdef enum:
    INLINE_PIECES = 8              # pieces kept inside the object: most requests have 3


cdef enum:
    CLOSED = 0                     # also what an object is that no ring has opened
    OPEN = 1
    HANDED = 2                     # the kernel has it; nobody else touches it
    RELEASED = 3                   # given back to the ring, to be handed out once more


cdef enum:
    # What the record says of a request: what becomes of it should its worker die.
    UNTOUCHED = 0                  # nothing that may not be done twice was begun: it is run again
    BY_POLICY = 1                  # its side effect may have happened: as the ring's `resubmit` says
    RUN_AGAIN = 2                  # as the request's own says
    DROP = 3
    FAIL = 4


cdef struct Chain:
    # One chain as the ring has checked it: host memory only, nothing of it is read again.
    iovec *pieces                  # readable ones first; valid until the ring's next fetch
    uint32_t readable_count
    uint32_t writable_count
    uint64_t readable              # bytes; readable + writable <= 2^32
    uint64_t writable
    uint16_t head
    uint16_t queue                 # the number of its ring, for a native device
    uint16_t descriptors           # entries of the ring that it takes; an indirect table is one
    uint64_t order                 # of one that was pulled: the entry that it came from


cdef class RequestOwner:
    cdef readonly int queue
    cdef uint64_t epoch            # requests of another epoch are detached
    cdef public Uring uring        # what `finish_preadv` and its like go through; None: they block
    cdef readonly Py_ssize_t lost  # requests that were dropped while open; they stay in flight
    cdef unsigned long thread      # whose turns the ring has; others may finish requests
    cdef void *viewed              # the first of a list of Requests: those whose views are alive

    cdef void revoke_views(self) noexcept
    cdef bint elsewhere(self) noexcept
    # For the ring to fill in. It is finished; it is given back; its `stage` was changed; what
    # becomes of one whose own `stage` does not say.
    cdef void request_closed(self, Request request) noexcept
    cdef void request_released(self, Request request) noexcept
    cdef void request_staged(self, Request request) noexcept
    cdef object resubmit_of_ring(self)
    # A native device has ended a request that it had deferred.
    cdef void native_done(self, uint16_t head, uint64_t written) noexcept nogil
    # What a native device asks of a ring that it pulls from; native.pxd has the words for it.
    cdef int native_pull(self, Chain *chain) noexcept nogil
    cdef void native_returned(self, uint16_t head, uint64_t order) noexcept nogil
    cdef void native_together(self, int count) noexcept nogil
    cdef void native_show(self) noexcept nogil
    cdef void native_dropped(self, uint64_t count) noexcept nogil


@cython.final
cdef class Request:
    cdef RequestOwner owner
    cdef GuestMemory memory        # keeps the mappings of the pieces
    cdef uint64_t epoch
    cdef uint64_t started          # ns, when it was fetched
    cdef bint finished_elsewhere          # finished by another thread: the ring has it in its list
    cdef uint8_t attempts          # deaths that it survived, before it was handed out
    cdef uint64_t order            # the entry of the ring that it came from
    cdef uint64_t used             # bytes to report; set when closed
    cdef uint64_t wanted           # bytes that the kernel is to move, while it has the request
    cdef bytes done                # what it ends with then
    cdef Operation operation
    cdef uint64_t total_readable
    cdef uint64_t total_writable
    cdef iovec *pieces             # inline_pieces, or allocated
    cdef uint32_t readable_count
    cdef uint32_t writable_count
    cdef Cursor reading
    cdef Cursor writing
    cdef Extents put_there         # areas written by `put`
    cdef int number                # of the queue
    cdef uint16_t _head
    cdef uint8_t state
    cdef uint8_t stage             # RUN_AGAIN, DROP or FAIL once `resubmit` was set
    cdef bint is_deferred
    cdef void *handed_out          # list of memoryviews; NULL as long as nobody has asked for one
    cdef void *newer               # of the owner's list `viewed`, while there are views
    cdef void *older
    cdef iovec inline_pieces[INLINE_PIECES]

    cdef int open(self, RequestOwner owner, GuestMemory memory, Chain *chain) except -1
    cdef bint make_anew(self) noexcept
    cdef void close(self, uint64_t used) noexcept
    cdef bint is_open(self) noexcept
    cdef uint64_t count_written(self) noexcept
    cdef int check(self) except -1
    cdef bint has_place(self, int64_t offset, uint64_t n) noexcept
    cdef int put_at(self, int64_t offset, const char *data, uint64_t n) except -1
    cdef int finish_with(self, bytes done) except -1
