"""C interface of the far end of a ring: what was completed, and how the driver hears of it."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vuproc.shm.atomics cimport vu_cycles, vu_is_soon
from vuproc.shm.counters cimport QueueCounters
from vuproc.shm.dirty cimport DirtyLog
from vuproc.shm.iotlb cimport Iotlb
from vuproc.shm.layout cimport Layout
from vuproc.shm.line cimport Line, await_turn, leave_first, next_is_done
from vuproc.shm.request cimport Chain
from vuproc.shm.trace cimport Trace


cdef enum:
    BATCH = 64                     # most completions published by one store of the used index
    BATCH_NS = 100000              # and the longest that one waits for others
    CALL_NS = 400000               # the longest that a call waits, with more to do than to tell,
    SOON_NS = 3000                 # and the shortest, unless there is nothing more to do
    SPANS_KEPT = 64                # room for the buffers of a head that is kept between its requests


cdef struct Completion:
    uint16_t head                  # `flights` has its descriptors until `commit`
    uint32_t length


cdef struct Flight:
    # What the ring keeps of a request, by its head, from the fetch on.
    uint64_t began                 # ns, when it was fetched; of a native device's requests only
    uint32_t readable              # bytes, at most 2^32 - 1; likewise
    uint16_t descriptors           # of the ring: for a layout whose used elements tell


cdef struct Span:
    uint64_t addr                  # guest-physical, of what the device may write
    uint64_t length                # never 0 if there is an IOMMU
    uint64_t iova                  # where the driver says it is, if there is one
    bint writable


cdef struct Spans:
    # The buffers of one head, from its fetch to its completion: the device-writable ones while
    # writes are logged, and all of them if there is an IOMMU.
    Span *spans
    uint32_t count
    uint32_t room


cdef class Completions(Layout):
    cdef QueueCounters counters
    cdef readonly Py_ssize_t size
    cdef Flight *flights           # by head
    cdef Spans *buffers            # by head; NULL: nobody has to know of them
    cdef Trace *trace              # of the last requests; NULL: they are not traced
    cdef bint watched              # there are `buffers` or a `trace`: one look for most rings,
    cdef bint followed             # and another at each fetch: there is a `line` or a `trace`
    cdef Iotlb iotlb               # what the addresses of descriptors mean; None: guest-physical
    cdef DirtyLog dirty            # None: writes are not logged
    cdef uint64_t used_log         # where the used ring's writes are logged
    cdef bint used_logged          # whether they are
    cdef int log_fd                # told of marks; -1: none
    cdef bint log_blocks           # a write to it may wait
    cdef dict granted              # by head, what is mapped for it alone (Xen); None: nothing is
    cdef Py_ssize_t flying         # fetched and not completed
    cdef Line line                 # with IN_ORDER; else there is none
    cdef Completion batch[BATCH]   # completed and not published
    cdef int batched
    cdef uint64_t batch_since      # ns, when the oldest of them was completed
    cdef bint owed                 # shown, and the driver wants a call for it
    cdef uint64_t owed_since       # ns
    cdef int unnotified                # shown since then
    cdef int call_fd               # -1: none
    cdef bint call_blocks          # a write to it may wait
    cdef uint64_t now              # ns, the last look at the clock
    cdef uint64_t looked           # the processor's count then,
    cdef uint64_t cycles           # and as the last request since ended
    cdef uint64_t unclocked        # requests that were served since then
    cdef uint64_t untimed          # of those, completed ones
    cdef uint64_t uncounted        # of those, ones that the counters do not have yet,
    cdef uint64_t uncounted_read   # and their bytes
    cdef uint64_t uncounted_written

    cdef int keep_order(self) except -1
    # No GIL, no Python objects.
    cdef void complete(
        self, uint16_t head, uint64_t written, uint64_t read, uint64_t nanoseconds
    ) noexcept nogil
    # Out of line: for rings that are `followed` or `watched`.
    cdef void enter_followed(self, Chain *chain) noexcept nogil
    cdef void leave_watched(self, uint16_t head, uint32_t length) noexcept nogil
    # Look at the clock; and at the end of a request, with the processor's count: the ns it took.
    cdef void tick(self) noexcept nogil
    cdef uint64_t tick_at_end(self, uint64_t cycles) noexcept nogil
    cdef void count(self) noexcept nogil
    cdef int flush(self) noexcept nogil
    cdef void show(self) noexcept nogil
    cdef void signal(self) noexcept nogil
    cdef bint call_is_due(self, uint64_t step) noexcept nogil

    cdef bint mark_in(self, DirtyLog log, object used_ring) except -1
    cdef int keep_buffers(self) except -1
    cdef void forget_buffers(self) noexcept nogil
    cdef void note_writable(self, uint16_t head, uint64_t addr, uint64_t length) noexcept nogil
    cdef void note_buffer(
        self, uint16_t head, uint64_t addr, uint64_t length, uint64_t iova, bint writable
    ) noexcept nogil
    cdef void drop_buffers(self, uint16_t head) noexcept nogil
    cdef void drop_granted(self, uint16_t head) noexcept
    cdef void mark_buffers(self, uint16_t head) noexcept nogil
    cdef void mark_used(self, uint64_t offset, uint64_t length) noexcept nogil
    cdef void mark_used_ring(self) noexcept nogil


cdef inline uint64_t unknown_time() noexcept nogil:
    # In place of the nanoseconds that a request took, until there is a look at the clock.
    return <uint64_t>-1


cdef inline uint64_t time_of(Completions ring) noexcept nogil:
    # The device's code has ended a request, not necessarily its last: the ns that it took, or
    # unknown_time() if the last look at the clock is not long ago. Quick ones share one, and have
    # the same time; one that takes long is seen at its end, and has its own.
    cdef uint64_t cycles = vu_cycles()
    if vu_is_soon(cycles, ring.looked):
        ring.cycles = cycles
        ring.unclocked += 1
        return unknown_time()
    return ring.tick_at_end(cycles)


# Inline, as they run for each request.

cdef inline void put_in_batch(Completions ring, uint16_t head, uint32_t length) noexcept nogil:
    if ring.batched == 0:
        ring.batch_since = ring.now
    ring.batch[ring.batched].head = head
    ring.batch[ring.batched].length = length
    ring.batched += 1
    if ring.batched == BATCH:
        ring.flush()


cdef inline void note_completed(
    Completions ring, uint16_t head, uint64_t written, uint64_t read, uint64_t nanoseconds
) noexcept nogil:
    # `head` is in flight and is completed once only; its Request's state, or its mark, sees to that.
    # 2^32 bytes are legal, and a used length of them is not to be had.
    cdef uint32_t length = <uint32_t>min(written, <uint64_t>0xffffffff)
    ring.flying -= 1
    if ring.watched:
        ring.leave_watched(head, length)
    if nanoseconds == unknown_time():
        # Counted before it is shown, with others.
        ring.untimed += 1
        ring.uncounted += 1
        ring.uncounted_read += read
        ring.uncounted_written += written
    elif ring.counters is not None:
        ring.counters.completed(read, written, nanoseconds)
    if ring.line.heads == NULL:
        put_in_batch(ring, head, length)
        return
    await_turn(&ring.line, head, length)
    while next_is_done(&ring.line):
        head = leave_first(&ring.line)
        put_in_batch(ring, head, ring.line.lengths[head])


cdef inline void pace(Completions ring, uint64_t step, int most) noexcept nogil:
    # After a request which took `step` ns: publish and call, if the next chance to do so, which is
    # taken to be as far off, would be too late. At most `most` requests are held back.
    if ring.batched >= most or (
        ring.batched and ring.now - ring.batch_since + step >= BATCH_NS
    ):
        ring.show()
    if ring.owed and ring.call_is_due(step):
        ring.flush()
