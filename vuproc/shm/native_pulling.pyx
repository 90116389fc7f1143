# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""Requests that a native device pulls: buffers to receive into stay with the driver until then."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vuproc.shm.completions cimport BATCH
from vuproc.shm.counters cimport add
from vuproc.shm.fetching cimport HELD, TAKEN, Again, note_taken
from vuproc.shm.handling cimport NO_MORE
from vuproc.shm.native cimport NativeDevice
from vuproc.shm.native_serving cimport NativeServing
from vuproc.shm.request cimport Chain, Request

cdef class NativePulling(NativeServing):
    """A ring's requests for a native device that takes them by itself."""

    def pulled_by(self, NativeDevice device not None):
        """Have the device pull from this ring, from now on until it stops or breaks."""
        self.attach(device)

    def publish(self):
        """As ever; and what the driver broke while it was pulled from comes out here."""
        count = NativeServing.publish(self)
        if self.cause != NULL and self.failure is None and not self.stopped:
            raise self.break_ring()
        return count

    cdef int native_pull(self, Chain *chain) noexcept nogil:
        cdef int got = NO_MORE
        cdef uint16_t head
        if not self.may_be_pulled or self.stopped or self.missed or self.cause != NULL:
            return 0
        if self.call_after_recovery:
            self.call_after_recovery = False
            self.signal()
        self.refuse_kicks()
        if self.again_next < self.again_end:
            with gil:
                got = self.pull_again(chain)
        if got == NO_MORE:
            chain.order = self.last_avail
            got = self.fetch_or_arm(chain)
        if got <= 0:
            return got
        self.prefetch_to_fill()
        head = chain.head
        chain.queue = <uint16_t>self.queue
        note_taken(self, head)
        self.flights[head].began = self.now
        self.flights[head].readable = <uint32_t>min(chain.readable, <uint64_t>0xffffffff)
        self.marks[head] = HELD
        return 1

    cdef int pull_again(self, Chain *chain) noexcept:
        # `next_again` for who cannot raise.
        cdef Again which
        cdef int got
        try:
            got = self.next_again(chain, &which)
        except BaseException:
            return self.fault(b"a request that is not to run again could not be completed")
        if got == 1:
            chain.order = which.order
        return got

    cdef Request as_request(self, Chain *chain):
        cdef Request request
        self.marks[chain.head] = TAKEN
        try:
            request = self.request_of(chain, chain.order)
        except MemoryError:
            # As `end_turn`.
            self.complete(chain.head, 0, 0, 0)
            self.opening = -1
            raise
        request.is_deferred = True
        return request

    cdef void native_returned(self, uint16_t head, uint64_t order) noexcept nogil:
        # Not HELD: completed already, or the ring has gone on without it.
        if head < self.size and self.marks[head] == HELD:
            self.marks[head] = TAKEN
            self.give_back(head, order)

    cdef void native_together(self, int count) noexcept nogil:
        # A batch is shown by one store, and would be full in the midst of them.
        if self.batched + count > BATCH:
            self.flush()

    cdef void native_show(self) noexcept nogil:
        self.tick()
        self.flush()

    cdef void native_dropped(self, uint64_t count) noexcept nogil:
        if self.counters is not None:
            add(&self.counters.block.dropped, count)
