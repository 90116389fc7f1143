"""C interface for devices served without Python: subclass NativeDevice and override `serve`.

A chain is two byte streams in host memory, checked by the ring: the readable pieces, then the
writable ones. The driver may change the bytes at any time, so copy once and decide on the copy.
"""

from libc.stdint cimport int64_t, uint16_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.request cimport Chain, RequestOwner
from vuproc.shm.uring cimport Uring


cdef enum:
    DEFERRED = -1                  # what `serve` answers if it will call `complete` later
    TO_PYTHON = -2                 # and if the request is for `Device.handle`, as it came
    # Pieces that one system call takes (Linux UIO_MAXIOV).
    IOV_MAX = 1024


cdef struct Served:
    # A ring that the device serves, by the number of its queue. Both are borrowed, from `rings` and
    # `urings` of the device; NULL: none.
    void *ring
    void *uring


cdef class NativeDevice:
    cdef Served *served            # by queue number; `queues` of them
    cdef int queues
    cdef dict rings                # RequestOwner by queue number
    cdef dict urings               # Uring by queue number
    cdef readonly uint64_t failures
    cdef readonly int failure      # errno of the last of them
    cdef public int completion_fd  # readable while `reap` has something to do; -1: none
    cdef bint is_quick             # `serve` never takes longer than a look at the clock does: no
                                   # system call, no byte that is copied. Set it when it is made
    cdef bint expects              # `expect` is overridden. Set it when it is made, too
    cdef public object handle      # of the device: what serves a request TO_PYTHON

    # To override. All but `attach` and `detach` are called without the GIL, by one thread; all but
    # `serve` need not be overridden.
    #
    # One request, whose `chain` and pieces are valid until it returns: the bytes written (the used
    # length), or DEFERRED, or TO_PYTHON.
    cdef int64_t serve(self, Chain *chain) noexcept nogil
    # A hint, if `expects`: requests to come have these first buffers, one each. Fetch what they will
    # need, several at a time, as what is waited for together takes no longer. A buffer lies in
    # guest memory, holds anything, and may be gone.
    cdef void expect(self, const iovec *firsts, int count) noexcept nogil
    # For devices that defer. The last `serve` of a batch of this queue is over: start what was only
    # queued.
    cdef void submit(self, int queue) noexcept nogil
    # `complete` what has ended in the meantime, without waiting; the number of them. Another
    # queue's may be among it.
    cdef int reap(self, int queue) noexcept nogil
    # Return when nothing that was deferred for this queue touches guest memory any more, and forget
    # it all: its ring is going away. What is completed in here is ignored.
    cdef void settle(self, int queue) noexcept nogil
    # A ring of `size` entries is going to be served, and is served no more: after `settle`. Call
    # the base class's from an override, first or last.
    cdef int attach(self, int queue, Py_ssize_t size, RequestOwner ring) except -1
    cdef int detach(self, int queue) except -1

    # To call.
    #
    # Complete a deferred request of that queue; from `serve`, `submit` and `reap` only.
    cdef void complete(self, int queue, uint16_t head, uint64_t written) noexcept nogil
    # The next request of a queue that `Device.pulls` says this device takes from: 1, and `chain` is
    # valid until the next call; 0: there is none, or the ring does not run; -1: its driver has
    # broken it. It stays the device's until it is completed or given back, which a stop of the ring
    # waits for.
    cdef int pull(self, int queue, Chain *chain) noexcept nogil
    # Give one back that is no use now: `head` and `order` of its chain. It is pulled again later.
    cdef void give_back(self, int queue, uint16_t head, uint64_t order) noexcept nogil
    # The driver is to see the next so many completions, at most BATCH, all at once or none yet.
    cdef void together(self, int queue, int count) noexcept nogil
    # Show the driver what is completed on a queue, and look at the clock: at the end of whatever
    # completes requests outside of `serve` of that queue.
    cdef void show(self, int queue) noexcept nogil
    # Count what the device has thrown away: `dropped` of the queue.
    cdef void drop(self, int queue, uint64_t count) noexcept nogil
    # Count a request that failed for a reason worth a line in the log: an errno.
    cdef void fail(self, int reason) noexcept nogil
    # The io_uring of a queue's ring, a Uring, with the files of `Device.uring_files` by their
    # index; NULL: there is none to be had. Cast it for each call. The worker waits for its
    # completions and closes it; both may come at any time between two calls of the device.
    cdef void *ring_uring(self, int queue) noexcept nogil

    cdef int make_room(self, int queue) except -1


# Copy `n` bytes from offset `at` of the readable stream, or into the writable one; the number that
# there were.
cdef uint64_t copy_out(const Chain *chain, uint64_t at, void *to, uint64_t n) noexcept nogil
cdef uint64_t copy_in(const Chain *chain, uint64_t at, const void *data, uint64_t n) noexcept nogil

# The pieces of `n` bytes from offset `at` of the writable (or readable) stream, at most `room` of
# them; their number. They may be fewer bytes than `n`: at the end of the stream, or of the room.
cdef int cut_pieces(
    const Chain *chain, bint writable, uint64_t at, uint64_t n, iovec *out, int room
) noexcept nogil

# Read `n` bytes of a file into the writable stream at `at`, or write them from the readable one.
# Answers the bytes moved: fewer than `n` at the end of the file (`reason` 0) or on an error
# (`reason` is the errno).
cdef uint64_t read_file(
    const Chain *chain, uint64_t at, uint64_t n, int fd, int64_t offset, int *reason
) noexcept nogil
cdef uint64_t write_file(
    const Chain *chain, uint64_t at, uint64_t n, int fd, int64_t offset, int *reason
) noexcept nogil
