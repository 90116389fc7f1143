"""C interface of what split and packed rings share; a layout fills in the methods at the end."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.completions cimport Completions
from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.native cimport NativeDevice
from vuproc.shm.request cimport Chain, Request


cdef enum:
    STEP = 8                       # completions that a native device shows at a time, with no call
    HELD = 2                       # a mark: in flight, and deferred by the native device


cdef struct Flight:
    # A request that a native device has.
    uint64_t began                 # ns, when it was fetched
    uint64_t readable


cdef class Ring(Completions):
    cdef GuestMemory memory
    cdef readonly Py_ssize_t size
    cdef uint32_t limit            # most descriptors of one chain
    cdef uint16_t last_avail       # next entry to fetch, free-running
    cdef uint16_t last_used        # next entry to complete; private, never read back (rule R3)
    cdef uint8_t *marks            # marks[head]: in flight, from fetch to used.idx's store
    cdef tuple found               # Recovered requests; None without a record
    cdef Py_ssize_t survivors      # their number
    cdef Py_ssize_t resumed        # and how many of them were taken up again
    cdef bint call_after_recovery            # the driver may have missed what a predecessor completed
    cdef object policy             # "drop" or "fail"; None: run again
    cdef public object on_skip
    cdef iovec *pieces             # room for the pieces of one chain
    cdef int piece_room
    cdef void *current             # the Request inside `handle`; borrowed
    cdef bint draining
    cdef readonly bint stopped
    cdef NativeDevice device       # None unless `serve_native` was called
    cdef Flight *flights           # by head; NULL without a native device
    cdef const char *cause         # what `fetch` or `look` found; NULL: nothing
    cdef object failure            # the RingError, once broken

    cdef bint begin(self, str what) except -1
    cdef int attach(self, NativeDevice device) except -1
    # No GIL, no Python objects.
    cdef int serve_batch(
        self, int budget, uint64_t slice_ns, uint64_t spin_ns, int *fetched
    ) noexcept nogil
    cdef void serve_one(self, Chain *chain, uint8_t attempts) noexcept nogil
    cdef bint wanted(self) noexcept nogil
    cdef bint await_work(self, uint64_t spin_ns) noexcept nogil

    cdef Request request_of(self, Chain *chain)
    cdef int resume(self, Chain *chain, uint8_t *attempts, uint8_t *stage) except -2
    cdef int serve(
        self, Request request, object handle, object on_error, uint8_t attempts, object reason
    ) except -1
    cdef int request_failed(self, Request request, object on_error, object error) except -1
    cdef int submit(self) except -1
    cdef void abandon(self) noexcept
    cdef object check_sound(self)
    cdef object break_ring(self)
    cdef void detach(self) noexcept
    cdef int allocate(self, Py_ssize_t size, uint32_t limit) except -1

    # The layout's part. Answers: 1 there is one, 0 there is none, -1 broken (`cause` is set).
    cdef int fetch(self, Chain *chain) noexcept nogil
    cdef int fetch_again(self, uint16_t head, Chain *chain) noexcept nogil
    cdef void prefetch(self) noexcept nogil
    cdef int look(self) noexcept nogil
    cdef void note_begun(self, uint16_t head, uint8_t attempts) noexcept nogil
    cdef void note_survived(self, uint16_t head, uint8_t attempts) noexcept nogil
    cdef void note_blamed(self, uint16_t head) noexcept nogil
    cdef void note_end(self) noexcept nogil
    cdef int ask_kicks(self) noexcept nogil
    cdef void refuse_kicks(self) noexcept nogil
    cdef bint available(self) noexcept nogil
    cdef int bind(self, GuestMemory memory) except -1
    cdef void unbind(self) noexcept
