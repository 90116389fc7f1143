# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The far end of a ring: completed requests are batched, shown to the driver, and announced."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abort, calloc, free, malloc, realloc
from posix.fcntl cimport F_GETFL, O_NONBLOCK, fcntl
from posix.unistd cimport write

from vuproc.shm.atomics cimport vu_cycles
from vuproc.shm.clock cimport clock_ns
from vuproc.shm.counters cimport add
from vuproc.shm.dirty cimport DirtyLog
from vuproc.shm.layout cimport Layout
from vuproc.shm.line cimport join
from vuproc.shm.request cimport Chain
from vuproc.shm.trace cimport trace_begun, trace_ended

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    short POLLOUT
    int poll(pollfd *fds, unsigned long count, int timeout)


cdef bint blocks(int fd) noexcept:
    # Whether a write may wait: O_NONBLOCK is the front-end's flag, and not ours to set.
    cdef int flags = fcntl(fd, F_GETFL)
    return flags < 0 or not flags & O_NONBLOCK


cdef int notify(int fd, bint may_block) noexcept nogil:
    # 1: sent; 0: full, and what is in there and not read yet wakes the other side as well; -1: not.
    # One that may block is looked at first. Should the front-end fill it in between, or take the
    # flag away, the write blocks this worker and nobody else.
    cdef pollfd look
    cdef uint64_t one = 1
    cdef int ready
    if not may_block:
        while write(fd, &one, sizeof(one)) < 0:
            if errno == EAGAIN:
                return 0
            if errno != EINTR:
                return -1
        return 1
    look.fd = fd
    look.events = POLLOUT
    look.revents = 0
    ready = poll(&look, 1, 0)
    while ready > 0:
        if write(fd, &one, sizeof(one)) >= 0:
            return 1
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            return -1
    return ready


cdef inline void time_quick(Completions ring, uint64_t passed) noexcept nogil:
    # What was served since the last look at the clock took so many ns together.
    if ring.untimed and ring.counters is not None:
        ring.counters.took(ring.untimed, passed // ring.unclocked)
    ring.unclocked = ring.untimed = 0


cdef class Completions(Layout):
    """What a ring has completed; how it is published is the layout's affair."""

    def __cinit__(self):
        self.call_fd = -1
        self.log_fd = -1

    def __dealloc__(self):
        self.forget_buffers()
        free(self.flights)
        if self.trace != NULL:
            free(self.trace.orders)
            free(self.trace)
        free(self.line.heads)
        free(self.line.lengths)
        free(self.line.done)

    @property
    def unpublished(self):
        """Requests finished and not shown to the driver yet."""
        return self.batched

    def set_call(self, int fd):
        """Notify the driver through `fd` (borrowed); -1: do not notify."""
        self.call_fd = fd if fd >= 0 else -1
        self.call_blocks = blocks(fd)

    def notify_always(self):
        """Notify the driver whether it wants that or not."""
        self.signal()

    cdef int keep_order(self) except -1:
        # Show completed requests in the order of their fetches, whatever that of their ends.
        self.line.size = <uint32_t>self.size
        self.line.heads = <uint16_t *>malloc(self.size * sizeof(uint16_t))
        self.line.lengths = <uint32_t *>malloc(self.size * sizeof(uint32_t))
        self.line.done = <uint8_t *>malloc(self.size)
        if self.line.heads == NULL or self.line.lengths == NULL or self.line.done == NULL:
            raise MemoryError
        self.followed = True
        return 0

    cdef void complete(
        self, uint16_t head, uint64_t written, uint64_t read, uint64_t nanoseconds
    ) noexcept nogil:
        note_completed(self, head, written, read, nanoseconds)

    cdef void enter_followed(self, Chain *chain) noexcept nogil:
        if self.line.heads != NULL:
            join(&self.line, chain.head)
        if self.trace != NULL:
            trace_begun(self.trace, chain, self.now, False)

    cdef void leave_watched(self, uint16_t head, uint32_t length) noexcept nogil:
        if self.trace != NULL:
            trace_ended(self.trace, head, length, self.now)
        if self.buffers != NULL:
            # Before the batch is published: what a successor does not run again is marked.
            self.mark_buffers(head)

    cdef void tick(self) noexcept nogil:
        cdef uint64_t now = clock_ns()
        time_quick(self, now - self.now)
        self.now = now
        self.looked = self.cycles = vu_cycles()

    cdef uint64_t tick_at_end(self, uint64_t cycles) noexcept nogil:
        cdef uint64_t now = clock_ns()
        cdef uint64_t passed = now - self.now, own = passed
        if self.unclocked:
            # Its share of the time is its share of the count; another CPU's may be behind.
            own = <uint64_t>(
                <double>passed * min(cycles - self.cycles, cycles - self.looked)
                / (cycles - self.looked)
            )
            time_quick(self, passed - own)
        self.now = now
        self.looked = self.cycles = cycles
        return own

    cdef void count(self) noexcept nogil:
        if self.counters is not None:
            self.counters.ended(self.uncounted, self.uncounted_read, self.uncounted_written)
        self.uncounted = self.uncounted_read = self.uncounted_written = 0

    cdef int flush(self) noexcept nogil:
        cdef int count = self.batched
        if count:
            self.show()
        if self.owed:
            self.owed = False
            self.signal()
        return count

    cdef void show(self) noexcept nogil:
        # Publish, and put off the call that the driver may want for it.
        cdef int count = self.batched
        cdef bint called
        if self.uncounted:
            # What the driver sees is counted.
            self.count()
        called = self.commit()
        if self.log_fd >= 0 and self.dirty is not None:
            notify(self.log_fd, self.log_blocks)
        if called and not self.owed:
            self.owed = True
            self.owed_since = self.now
            self.unnotified = 0
        if self.owed:
            self.unnotified += count

    cdef bint call_is_due(self, uint64_t step) noexcept nogil:
        # To wake a driver costs us some microseconds, and takes a CPU from somebody, perhaps from
        # another worker. One that has a lot waiting still loses nothing if it hears of the first a
        # bit later. When half of it is done, it is called, however soon that is: it takes longer to
        # wake up than we do for the rest, and goes on by itself then, so that these are no more
        # calls. Only a few that are over at once are not worth one before their end.
        cdef uint64_t waits = self.now - self.owed_since + step
        if not self.owed or waits < SOON_NS:
            return False
        return waits >= CALL_NS or not self.has_waiting(self.unnotified)

    cdef void signal(self) noexcept nogil:
        cdef int sent
        if self.call_fd < 0:
            return
        sent = notify(self.call_fd, self.call_blocks)
        if self.counters is None:
            return
        if sent > 0:
            add(&self.counters.block.calls, 1)
        elif sent < 0:
            add(&self.counters.block.call_errors, 1)

    # The dirty log.

    cdef bint mark_in(self, DirtyLog log, object used_ring) except -1:
        # Have another log, or none; whether the buffers of what is in flight are not known.
        cdef bint unknown = self.buffers == NULL
        cdef uint64_t at = 0 if used_ring is None else used_ring
        # As long as the old log is to have it.
        self.flush()
        self.mark_used_ring()
        self.dirty = None
        self.used_logged = False
        if log is None:
            if self.iotlb is None and self.granted is None:
                self.forget_buffers()
            return False
        if unknown:
            self.keep_buffers()
        self.dirty = log
        self.used_log = at
        self.used_logged = used_ring is not None
        # A predecessor may have died between the used index and its mark.
        self.mark_used_ring()
        return unknown

    def set_log_call(self, int fd):
        """Tell through `fd` (borrowed) that pages were marked; -1: tell nobody."""
        self.log_fd = fd if fd >= 0 else -1
        self.log_blocks = blocks(fd)

    cdef int keep_buffers(self) except -1:
        self.buffers = <Spans *>calloc(self.size, sizeof(Spans))
        if self.buffers == NULL:
            raise MemoryError
        self.watched = True
        return 0

    cdef void forget_buffers(self) noexcept nogil:
        cdef Py_ssize_t head
        if self.buffers == NULL:
            return
        for head in range(self.size):
            free(self.buffers[head].spans)
        free(self.buffers)
        self.buffers = NULL
        self.watched = self.trace != NULL

    cdef void note_writable(self, uint16_t head, uint64_t addr, uint64_t length) noexcept nogil:
        # Behind an IOMMU the address says nothing yet: `Ring.look_up` notes what it finds.
        if self.iotlb is None:
            self.note_buffer(head, addr, length, 0, True)

    cdef void note_buffer(
        self, uint16_t head, uint64_t addr, uint64_t length, uint64_t iova, bint writable
    ) noexcept nogil:
        cdef Spans *known = self.buffers + head
        cdef Span *spans
        if known.count == known.room:
            spans = <Span *>realloc(known.spans, 2 * (known.room + 4) * sizeof(Span))
            if spans == NULL:
                # Without it a page would be forgotten. Another worker may have the memory.
                abort()
            known.spans = spans
            known.room = 2 * (known.room + 4)
        known.spans[known.count].addr = addr
        known.spans[known.count].length = length
        known.spans[known.count].iova = iova
        known.spans[known.count].writable = writable
        known.count += 1

    cdef void mark_buffers(self, uint16_t head) noexcept nogil:
        # All that the driver has made writable: who wrote what, and by which way, is not asked.
        cdef Spans *known = self.buffers + head
        cdef uint32_t i
        if self.dirty is not None:
            for i in range(known.count):
                # The log is by guest-physical address, which a grant (Xen, bit 63) has none of.
                if known.spans[i].writable and not known.spans[i].addr >> 63:
                    self.dirty.mark_range(known.spans[i].addr, known.spans[i].length)
        self.drop_buffers(head)

    cdef void drop_buffers(self, uint16_t head) noexcept nogil:
        cdef Spans *known = self.buffers + head
        if self.granted is not None:
            with gil:
                self.drop_granted(head)
        known.count = 0
        if known.room > SPANS_KEPT:
            # The driver decides how many a chain has: what one needed is not kept for every head.
            free(known.spans)
            known.spans = NULL
            known.room = 0

    cdef void drop_granted(self, uint16_t head) noexcept:
        # Unmapped, unless a slice of a view is alive: that is seen to by its owner.
        self.granted.pop(head, None)

    cdef void mark_used(self, uint64_t offset, uint64_t length) noexcept nogil:
        cdef uint64_t at = self.used_log + offset
        if self.used_logged:
            # The address is the front-end's: one that wraps around is beyond any log.
            self.dirty.mark_range(at if at >= offset else UINT64_MAX, length)

    cdef void mark_used_ring(self) noexcept nogil:
        # The flags and the event word, too, which change without a completion.
        if self.used_logged:
            self.dirty.mark_range(self.used_log, self.used_bytes())
