# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The near end of a ring: what is fetched, what a predecessor left, what the device gave back."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcpy, memmove
from posix.uio cimport iovec

from vuproc.shm.completions cimport Completions, Flight, Span
from vuproc.shm.line cimport join, leave_last
from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.request cimport UNTOUCHED, Chain, Request
from vuproc.shm.trace cimport trace_begun

from vuproc.errors import RingError

cdef GuestMemory NOWHERE = GuestMemory()

cdef enum:
    # Pieces of a descriptor on average: each may cross from one region into the next; and behind an
    # IOMMU each page may lie elsewhere, while Linux has segments of up to 64 KiB.
    PIECES_EACH = 2
    PIECES_EACH_TRANSLATED = 18

cdef enum:
    # Where `last_avail` begins, beside the index itself: what was found before has room below.
    FIRST = 1 << 17


cdef int compare(const void *one, const void *other) noexcept nogil:
    cdef uint64_t a = (<const Again *>one).order, b = (<const Again *>other).order
    return -1 if a < b else a > b


cdef class Fetching(Completions):
    """What comes from the driver; how it is read is the layout's affair."""

    def __dealloc__(self):
        free(self.marks)
        free(self.pieces)
        free(self.again)
        free(self.returned)

    cdef int allocate(self, Py_ssize_t size, uint32_t limit) except -1:
        # What needs more than that on average is no driver's buffer, and the room is not the guest's
        # to choose.
        self.piece_room = 16 + limit * (
            PIECES_EACH if self.iotlb is None else PIECES_EACH_TRANSLATED
        )
        self.pieces = <iovec *>malloc(self.piece_room * sizeof(iovec))
        self.marks = <unsigned char *>calloc(size, 1)
        self.flights = <Flight *>calloc(size, sizeof(Flight))
        # A head is in one of the two at most, and once.
        self.again = <Again *>malloc(size * sizeof(Again))
        self.returned = <Again *>malloc(size * sizeof(Again))
        if (
            self.pieces == NULL or self.marks == NULL or self.flights == NULL
            or self.again == NULL or self.returned == NULL
        ):
            raise MemoryError
        self.size = size
        self.limit = limit
        return 0

    @property
    def pending(self):
        """True if there is something to drain."""
        if self.failure is not None or self.stopped or self.missed:
            return False
        return self.again_next < self.again_end or self.available()

    @property
    def waiting(self):
        """How many requests could be fetched now."""
        if self.failure is not None or self.stopped or self.missed:
            return 0
        return self.again_end - self.again_next + self.backlog()

    @property
    def in_flight(self):
        """Requests handed to the device by this ring and not finished or given back."""
        return self.flying

    @property
    def released(self):
        """Requests that the device gave back and that were not readmitted."""
        return self.returned_count

    @property
    def outstanding(self):
        """Those in flight, those given back, those recovered and not run yet, and those that wait
        for their turn to be shown."""
        return (
            self.flying + self.returned_count + self.again_end - self.again_next + self.line.waiting
        )

    @property
    def recovered(self):
        """What the record held when the ring was made, in the order in which it was fetched."""
        return () if self.found is None else self.found

    @property
    def resubmit(self):
        """What becomes of a recovered request whose side effect may have happened."""
        return self.resubmit_of_ring()

    @resubmit.setter
    def resubmit(self, value):
        if value not in ("run", "drop", "fail"):
            raise ValueError(f"resubmit is run, drop or fail, not {value!r}")
        self.policy = None if value == "run" else value

    cdef object resubmit_of_ring(self):
        return "run" if self.policy is None else self.policy

    @property
    def next_avail(self):
        """The next entry to fetch: a free-running 16-bit index, or bit 15 a packed ring's wrap."""
        return self.place()

    @property
    def next_used(self):
        """The next entry to complete, likewise."""
        return self.last_used

    @property
    def broken(self):
        """Why the ring is broken; None while it is sound."""
        return self.failure

    # Where it all lies.

    cdef int be_in(self, GuestMemory memory) except -1:
        # Nowhere: no look-up of a ring without an IOMMU pays for one that has it.
        if memory.on_demand and self.granted is None:
            if self.buffers == NULL:
                self.keep_buffers()
            self.granted = {}
        self.memory = memory
        self.direct = memory if self.iotlb is None else NOWHERE
        self.recent.size = self.earlier.size = 0
        return 0

    cdef int translate(
        self, uint64_t addr, uint64_t length, iovec *out, int room
    ) noexcept nogil:
        cdef int made = self.direct.translate(addr, length, out, room)
        if made == 1:
            self.earlier = self.recent
            self.recent = self.direct.table[self.direct.find(addr)]
        return made

    cdef int not_walked(self, uint16_t head) noexcept nogil:
        # A chain was not walked to its end: -1, it is malformed; 0, it waits for translations, and
        # stays with the driver, or in the record.
        if self.cause != NULL or not self.missed:
            return -1
        self.drop_buffers(head)
        return 0

    @property
    def missing(self):
        """True if the next chain waits for translations, which the Iotlb's misses are."""
        return self.missed

    def look_again(self):
        """Some translations have come: the next chain may be fetched."""
        self.missed = False

    def uses(self, uint64_t first, uint64_t last):
        """True if a request that the device has uses memory by I/O virtual addresses in a range."""
        cdef Py_ssize_t head
        cdef uint32_t i
        cdef Span *span
        if self.iotlb is None or self.buffers == NULL:
            return False
        for head in range(self.size):
            for i in range(self.buffers[head].count):
                span = self.buffers[head].spans + i
                # No wrap: `find_pieces` has compared the end of the whole.
                if span.iova <= last and first <= span.iova + (span.length - 1):
                    return True
        return False

    # What comes again.

    cdef void begin_at(self, uint16_t index) noexcept:
        self.last_avail = FIRST + <uint64_t>index

    cdef void adopt(self, tuple found, Py_ssize_t last) noexcept:
        # A predecessor's requests. So many at the end are known to be what was fetched last.
        cdef Py_ssize_t count = len(found), i
        self.found = found
        for i in range(count):
            recovered = found[i]
            self.again[i].head = recovered.head
            self.again[i].attempts = recovered.attempts
            self.again[i].stage = recovered.stage
            # In their order, and with a gap before those that are known to be the last.
            self.again[i].order = self.last_avail - count + i if i >= count - last else i
            self.marks[self.again[i].head] = TAKEN
            if self.line.heads != NULL:
                join(&self.line, self.again[i].head)
        self.again_end = count

    cdef int resume(self, Chain *chain, Again *which) except -2:
        # The next of them, its chain read anew; 0: it waits for translations; -1: it is malformed.
        which[0] = self.again[self.again_next]
        if which.attempts:
            # Should this one kill us too, what is done before it is not to be done again.
            self.flush()
        if self.fetch_again(which.head, chain) < 0:
            return self.not_walked(which.head)
        self.again_next += 1
        self.flying += 1
        if self.trace != NULL:
            trace_begun(self.trace, chain, self.now, True)
        return 1

    cdef void request_staged(self, Request request) noexcept:
        self.note_stage(request._head, request.stage)

    cdef void request_released(self, Request request) noexcept:
        self.give_back(request._head, request.order)

    cdef void give_back(self, uint16_t head, uint64_t order) noexcept nogil:
        # It stays marked, here and in the record: whoever comes after us finds it.
        cdef Again *returned = self.returned + self.returned_count
        returned.head = head
        returned.order = order
        returned.attempts = 0
        returned.stage = UNTOUCHED
        self.returned_count += 1
        self.flying -= 1
        if self.iotlb is not None:
            self.drop_buffers(head)
        self.note_given_back(head)

    def readmit(self):
        """Hand out again what the device gave back, before anything new; return how many."""
        cdef Py_ssize_t count = self.returned_count
        self.line_up()
        return count

    cdef void line_up(self) noexcept nogil:
        # SAFETY: the heads of both are marked, and each is in one of them once: at most `size`.
        cdef Py_ssize_t left = self.again_end - self.again_next
        if self.returned_count == 0:
            return
        memmove(self.again, self.again + self.again_next, left * sizeof(Again))
        memcpy(self.again + left, self.returned, self.returned_count * sizeof(Again))
        self.again_next = 0
        self.again_end = left + self.returned_count
        self.returned_count = 0
        qsort(self.again, self.again_end, sizeof(Again), compare)

    # The stop of a ring whose requests nobody has.
    #
    # Let h(1) to h(k) be all that is outstanding, in the order of the fetches, and let no other
    # head have been fetched after h(1). Then the entries of the avail ring from used + lead on are
    # h(1) to h(k), for what was fetched before them is completed: last = used + lead + k. They are
    # still there, since a driver has no free slot before the used index passes them.
    # `unfetch` clears the marks of h(k), h(k-1), ... to h(1), one store each. A death after j of
    # these stores leaves h(1) to h(k-j) marked, and the successor reckons
    #     last = used + lead + live = used + lead + k - j,
    # which is the entry of h(k-j+1): what is not marked is fetched again, in order, and what is
    # marked is recovered. Cleared oldest first, h(1) would be skipped and h(k) be there twice.
    # After all of them the record is that of an idle ring at used + lead, which is the base that
    # the stop answers with, and its version goes to 0 as for one.
    # Only what may be run as if it had never been fetched is taken back: the record's attempts and
    # stage are gone with the mark.

    cdef bint can_unfetch(self):
        cdef Py_ssize_t i
        cdef uint64_t count = self.returned_count + self.again_end - self.again_next
        cdef uint64_t first = self.last_avail - count
        cdef Again *again
        if self.flying or self.batched or self.line.waiting:
            return False
        # Orders are distinct and below that of the next fetch: the last `count` of them are the
        # ones from here on.
        for i in range(self.returned_count):
            if self.returned[i].order < first:
                return False
        for i in range(self.again_next, self.again_end):
            again = self.again + i
            if again.order < first or again.attempts:
                return False
            if reason_to_skip(self, 0, again.stage) is not None:
                return False
        return True

    cdef void unfetch_all(self) noexcept:
        self.line_up()
        while self.again_end > self.again_next:
            self.again_end -= 1
            self.unfetch(self.again[self.again_end].head)
            if self.line.heads != NULL:
                leave_last(&self.line)

    # Kicks.

    def arm(self):
        """Ask for a kick at the next request; True if there is work already."""
        cdef int got
        self.check_sound()
        if self.stopped or self.missed:
            return False
        got = self.ask_kicks()
        if got < 0:
            self.flush()
            raise self.break_ring()
        return got > 0 or self.again_next < self.again_end

    def disarm(self):
        """Ask for no kicks; the driver may kick still."""
        if self.failure is None and not self.stopped:
            self.refuse_kicks()

    # The end.

    cdef object check_sound(self):
        # A fresh exception each time: a kept one would hold the frames of the first traceback.
        if self.failure is not None:
            raise RingError(*self.failure.args)

    cdef object break_ring(self):
        error = RingError(self.queue, self.place(), self.cause.decode("ascii"))
        self.failure = RingError(*error.args)
        self.detach()
        return error

    cdef void detach(self) noexcept:
        # Its requests know by the epoch.
        self.epoch += 1
        self.revoke_views()
        self.mark_used_ring()
        self.batched = 0
        self.owed = False
        self.flying = 0
        self.line.count = self.line.waiting = 0
        self.returned_count = 0
        self.again_next = self.again_end
        self.unbind()
        if self.granted is not None:
            self.granted.clear()
        self.memory = self.direct = None
        self.recent.size = self.earlier.size = 0
