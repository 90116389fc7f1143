# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""Requests served by a native device, without the GIL."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.atomics cimport vu_cycles, vu_is_soon, vu_note8, vu_pause
from vuproc.shm.clock cimport clock_ns
from vuproc.shm.completions cimport Flight, note_completed, pace, time_of, unknown_time
from vuproc.shm.counters cimport Block, add, set_busy
from vuproc.shm.fetching cimport HELD, TAKEN, Again, note_begun, reason_to_skip
from vuproc.shm.batching cimport Batching
from vuproc.shm.handling cimport SHORT_SLICE, is_wanted
from vuproc.shm.native cimport TO_PYTHON, NativeDevice
from vuproc.shm.request cimport BY_POLICY, UNTOUCHED, Chain, Request
from vuproc.shm.spin cimport Spin

SLICE_NS = SHORT_SLICE

cdef enum:
    # Looks at the ring between two at the clock, while spinning.
    SPIN_LOOKS = 16
    # Requests that a device hears of at a time.
    TOGETHER = 4


cdef inline Block *block_of(NativeServing ring) noexcept nogil:
    return NULL if ring.counters is None else ring.counters.block


cdef inline uint8_t stage_of(NativeServing ring) noexcept nogil:
    return UNTOUCHED if ring.policy is None else BY_POLICY


cdef inline void serve_one(
    NativeServing ring, Chain *chain, Block *block, uint8_t attempts, uint8_t stage, bint quick
) noexcept nogil:
    # Inline: it runs for each request. block: of the counters, or NULL. stage: of a request that
    # was begun. quick: as the device says.
    cdef uint16_t head = chain.head
    cdef Flight *flight = ring.flights + head
    cdef uint8_t *state = ring.states
    cdef uint64_t took = unknown_time()
    cdef int64_t written
    flight.began = ring.now
    flight.readable = <uint32_t>min(chain.readable, <uint64_t>0xffffffff)
    ring.marks[head] = HELD
    if block != NULL:
        set_busy(block, 1 + <uint64_t>head)
    if state == NULL or attempts:
        state = NULL
        note_begun(ring, head, attempts)
    else:
        # SAFETY: a head is below the record's size.
        state += <size_t>head * ring.state_step
        vu_note8(state, 1 | <uint8_t>(stage << 4))  # X1, X2
    written = ring.device.serve(chain)
    if written == TO_PYTHON:
        # Its life goes on as that of a request that Python has fetched.
        ring.marks[head] = TAKEN
        with gil:
            ring.serve_left(chain, attempts)
        return
    if quick:
        ring.unclocked += 1
    else:
        took = time_of(ring)
    if block != NULL:
        set_busy(block, 0)
        add(&block.heartbeat, 1)
    if state == NULL:
        ring.note_attempts(head, attempts)
    elif ring.states != NULL:
        # The device has not stopped its ring.
        vu_note8(state, <uint8_t>(stage << 4))  # X3
    if written >= 0 and ring.marks[head] == HELD:
        # As `native_done`, without a call.
        ring.marks[head] = TAKEN
        note_completed(ring, head, written, flight.readable, took)
    if quick and ring.unclocked % STEP == 0 and not vu_is_soon(vu_cycles(), ring.looked):
        # One look at the processor's count for so many, as it takes half as long as one of them.
        ring.tick()


cdef inline bint ends_early(NativeServing ring) noexcept nogil:
    # `handle` has stopped or broken the ring, or something came through it.
    return ring.stopped or ring.device is None or ring.raised is not None


cdef class NativeServing(Batching):
    """A ring's requests in native code, from the fetch to the completion."""

    def serve_native(
        self,
        NativeDevice device not None,
        object on_error,
        int budget,
        uint64_t spin_ns=0,
        uint64_t slice_ns=SLICE_NS,
    ):
        """As `drain` by a native device; False if the ring was found empty and stayed so."""
        cdef Chain chain
        cdef int got = 1, fetched = 0
        cdef Again which
        cdef Request request
        cdef object reason
        cdef uint64_t failures = device.failures, began
        if not self.begin("serve_native"):
            return False
        chain.queue = <uint16_t>self.queue
        self.on_error = on_error
        try:
            if self.device is not device:
                self.attach(device)
            while self.again_next < self.again_end and fetched < budget:
                got = self.resume(&chain, &which)
                if got <= 0:
                    break
                fetched += 1
                reason = reason_to_skip(self, which.attempts, which.stage)
                began = self.now
                if reason is not None:
                    request = self.request_of(&chain, which.order)
                    self.serve(request, None, on_error, which.attempts, reason)
                else:
                    chain.order = which.order
                    with nogil:
                        serve_one(
                            self, &chain, block_of(self), which.attempts, stage_of(self), False
                        )
                if ends_early(self):
                    break
                pace(self, self.now - began, STEP)
                if is_wanted(self):
                    break
            with nogil:
                if got > 0 and self.again_next == self.again_end and not ends_early(self):
                    got = self.serve_batch(budget, slice_ns, spin_ns, &fetched)
                device.submit(self.queue)
        finally:
            self.end_turn()
            self.flush()
            if self.counters is not None and device.failures != failures:
                add(&self.counters.block.errors, device.failures - failures)
        self.raise_what_came()
        if got < 0:
            raise self.break_ring()
        return got > 0

    @property
    def quiet(self):
        """True if its next turns need nothing of Python."""
        return self.is_quiet()

    cdef bint is_quiet(self):
        return (
            self.failure is None
            and not self.stopped
            and not self.draining
            and self.device is not None
            and self.device.completion_fd < 0
            and self.device.uring_of(self.queue) is None
            and self.iotlb is None
            and self.granted is None
            and self.again_next == self.again_end
            and not self.returned_count
            and not self.from_threads
            and not self.call_after_recovery
        )

    cdef int serve_quietly(self, int budget, uint64_t slice_ns, Spin spin) noexcept nogil:
        # As `serve_native`, and as `arm` at its end: 0, the next request comes with a kick; 1, there
        # may be more; -1, the driver has broken the ring.
        cdef uint64_t failures = self.device.failures, end
        cdef int got = 1, fetched = 0, before
        self.draining = True
        self.refuse_kicks()
        self.tick()
        end = self.now + slice_ns
        while True:
            before = fetched
            got = self.serve_batch(budget, slice_ns, spin.window_at(self.now), &fetched)
            if ends_early(self):
                self.draining = False
                return 1
            self.device.submit(self.queue)
            self.flush()
            if got == 0:
                got = self.ask_kicks()
                if got > 0 and before < fetched < budget and self.now < end and not is_wanted(self):
                    # The driver was quicker than our wish. What it shows and takes back again is
                    # nothing to stay for.
                    self.refuse_kicks()
                    continue
            break
        self.draining = False
        if self.unclocked:
            # What comes now is not their time.
            self.tick()
        if self.counters is not None and self.device.failures != failures:
            add(&self.counters.block.errors, self.device.failures - failures)
        return got

    cdef int attach(self, NativeDevice device) except -1:
        if self.device is not None:
            raise RuntimeError("the ring has another native device already")
        device.attach(self.queue, self.size, self)
        self.device = device
        return 0

    cdef int serve_batch(
        self, int budget, uint64_t slice_ns, uint64_t spin_ns, int *fetched
    ) noexcept nogil:
        # Up to the budget, the end of the slice or a command of the master: 1. All that there was:
        # 0. A broken ring: -1.
        cdef Chain chain
        cdef uint64_t end = self.now + slice_ns, began
        cdef bint quick = self.device.is_quick
        cdef Block *block = block_of(self)
        cdef uint8_t stage = stage_of(self)
        cdef uint64_t left = self.left
        cdef bint expects = self.device.expects
        cdef int expected = 0      # requests that the device has been told of
        cdef int got
        chain.queue = <uint16_t>self.queue
        while fetched[0] < budget:
            chain.order = self.last_avail
            got = self.fetch(&chain)
            if got < 0:
                return -1
            if got:
                fetched[0] += 1
                self.prefetch()
                if expects:
                    expected -= expected > 0
                    if expected == 0:
                        expected = self.announce()
                began = self.now
                serve_one(self, &chain, block, 0, stage, quick)
                if self.left != left:
                    left = self.left
                    if ends_early(self):
                        return 1
                # Small steps keep a driver busy that looks for itself, and one that sleeps is not
                # to be called for each of them.
                pace(self, self.now - began, STEP)
            else:
                self.device.submit(self.queue)
                self.device.reap(self.queue)
                # The driver may answer what it is shown with new work, without a kick.
                if not self.flush() and not self.await_work(spin_ns):
                    return 0
            if self.now >= end or is_wanted(self):
                return 1
        return 1

    cdef int announce(self) noexcept nogil:
        # Tell the device of the next requests, as far as they are known; of how many.
        cdef iovec firsts[TOGETHER]
        cdef int count = 0
        while count < TOGETHER and self.coming(<uint16_t>count, firsts + count):
            count += 1
        if count:
            self.device.expect(firsts, count)
        return count

    cdef void serve_left(self, Chain *chain, uint8_t attempts) noexcept:
        cdef Request request
        self.left += 1
        try:
            request = self.request_of(chain, chain.order)
            self.serve(request, self.device.handle, self.on_error, attempts, None)
        except BaseException as error:
            self.raised = error
            if self.opening >= 0:
                # As `end_turn`.
                self.complete(<uint16_t>self.opening, 0, 0, 0)
                self.opening = -1

    cdef int raise_what_came(self) except -1:
        cdef object raised = self.raised
        if raised is not None:
            self.raised = None
            raise raised
        return 0

    cdef void native_done(self, uint16_t head, uint64_t written) noexcept nogil:
        # Not HELD: completed already, or the ring has gone on without it.
        if head >= self.size or self.marks[head] != HELD:
            return
        self.marks[head] = TAKEN
        self.complete(head, written, self.flights[head].readable, self.now - self.flights[head].began)

    cdef bint await_work(self, uint64_t spin_ns) noexcept nogil:
        # Look again and again for at most `spin_ns`, with kicks refused; True: there is something.
        cdef uint64_t end
        cdef int look
        if spin_ns == 0 or self.missed:
            return False
        self.tick()
        end = self.now + spin_ns
        while self.now < end:
            for look in range(SPIN_LOOKS):
                if (
                    self.available()
                    or self.device is not None and self.device.reap(self.queue)
                    or self.uring is not None and self.uring.ready()
                ):
                    self.tick()
                    self.hits += 1
                    return True
                vu_pause()
            if is_wanted(self):
                return False
            self.now = clock_ns()
        return False

    def spin(self, uint64_t nanoseconds):
        """Look for work for so long, asking for no kick; True as soon as there is some."""
        cdef bint found
        if self.failure is not None or self.stopped:
            return False
        with nogil:
            found = self.await_work(nanoseconds)
        return found

    def publish(self):
        """Show finished requests to the driver and notify it if it wants that; return how many."""
        if self.from_threads:
            self.take_from_threads()
        if self.device is not None:
            self.tick()
            with nogil:
                self.device.reap(self.queue)
                self.device.submit(self.queue)
        return self.flush()

    cdef uint64_t head_of(self, uint64_t tag):
        return Batching.head_of(self, tag) if self.device is None else tag

    cdef void detach(self) noexcept:
        cdef Py_ssize_t head
        cdef NativeDevice device = self.device
        if device is not None:
            # What is completed from here on is ignored.
            for head in range(self.size):
                if self.marks[head] == HELD:
                    self.marks[head] = TAKEN
            with nogil:
                device.settle(self.queue)
            self.device = None
            device.detach(self.queue)
        Batching.detach(self)
