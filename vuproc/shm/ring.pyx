# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""What split and packed rings share: the loops over requests, and what a predecessor has left."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abort, calloc, free, malloc

from vuproc.shm.atomics cimport vu_load_relaxed64, vu_pause
from vuproc.shm.clock cimport clock_ns
from vuproc.shm.completions cimport BATCH, Completions
from vuproc.shm.counters cimport EPOCHS, add, set_busy
from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.native cimport NativeDevice
from vuproc.shm.request cimport CLOSED, OPEN, Chain, Request
from vuproc.shm.uring cimport Outcome, Transfer, Uring

from os import strerror

from vuproc.errors import RingError
from vuproc.shm.inflight import POISON_ATTEMPTS

cdef int POISON = POISON_ATTEMPTS

SLICE_NS = 1_000_000

cdef enum:
    # Looks at the ring between two at the clock, while spinning.
    SPIN_LOOKS = 16
    OUTCOMES = 64
    # Requests after which the kernel is told of what there is for it, in the middle of a batch: the
    # disk is not to wait for the last of them.
    SUBMIT = 16

cdef class Ring(Completions):
    """The device side of one virtqueue, whatever its layout."""

    def __dealloc__(self):
        free(self.marks)
        free(self.pieces)
        free(self.flights)

    cdef int allocate(self, Py_ssize_t size, uint32_t limit) except -1:
        # Twice the descriptors: each may cross from one region into the next. What crosses more
        # than that on average is no driver's buffer, and the room is not the guest's to choose.
        self.piece_room = 2 * limit + 16
        self.pieces = <iovec *>malloc(self.piece_room * sizeof(iovec))
        self.marks = <unsigned char *>calloc(size, 1)
        if self.pieces == NULL or self.marks == NULL:
            raise MemoryError
        self.size = size
        self.limit = limit
        return 0

    @property
    def pending(self):
        """True if there is something to drain."""
        if self.failure is not None or self.stopped:
            return False
        return self.resumed < self.survivors or self.available()

    @property
    def in_flight(self):
        """Requests handed to the device by this ring and not finished."""
        return self.flying

    @property
    def outstanding(self):
        """Those in flight, and those recovered and not run yet."""
        return self.flying + self.survivors - self.resumed

    @property
    def recovered(self):
        """What the record held when the ring was made, in the order in which it was fetched."""
        return () if self.found is None else self.found

    @property
    def resubmit(self):
        """What becomes of a recovered request whose side effect may have happened."""
        return "run" if self.policy is None else self.policy

    @resubmit.setter
    def resubmit(self, value):
        if value not in ("run", "drop", "fail"):
            raise ValueError(f"resubmit is run, drop or fail, not {value!r}")
        self.policy = None if value == "run" else value

    @property
    def next_avail(self):
        """The free-running 16-bit index of the next entry to fetch."""
        return self.last_avail

    @property
    def next_used(self):
        """The free-running 16-bit index of the next entry to complete."""
        return self.last_used

    @property
    def broken(self):
        """Why the ring is broken; None while it is sound."""
        return self.failure

    def drain(self, object handle, object on_error, int budget):
        """Fetch and handle up to `budget` requests; return how many were fetched."""
        cdef Chain chain
        cdef Request request
        cdef int got = 0, fetched = 0
        cdef uint64_t epoch = self.epoch, began
        cdef uint8_t attempts, stage
        cdef object reason
        if not self.begin("drain"):
            return 0
        try:
            while fetched < budget:
                attempts = 0
                reason = None
                if self.resumed < self.survivors:
                    got = self.resume(&chain, &attempts, &stage)
                    if attempts >= POISON:
                        reason = "poison"
                    elif stage:
                        reason = self.policy
                else:
                    got = self.fetch(&chain)
                if got == 0 and (self.batched or self.owed):
                    # The driver may answer what it is shown with new work, without a kick.
                    self.flush()
                    got = self.fetch(&chain)
                if got <= 0:
                    break
                fetched += 1
                began = self.now
                request = self.request_of(&chain)
                self.serve(request, handle, on_error, attempts, reason)
                if self.epoch != epoch:
                    # The handler stopped the ring.
                    break
                self.pace(self.now - began, BATCH)
                if self.uring is not None and fetched % SUBMIT == 0:
                    self.submit()
                if self.wanted():
                    break
        finally:
            self.draining = False
            self.flush()
            if self.uring is not None:
                self.submit()
        if got < 0:
            raise self.break_ring()
        return fetched

    cdef bint begin(self, str what) except -1:
        # A turn begins; False: the ring is stopped.
        if self.draining:
            raise RuntimeError(f"{what} called from a handler")
        self.check_sound()
        if self.stopped:
            return False
        self.draining = True
        self.refuse_kicks()
        if self.call_after_recovery:
            self.call_after_recovery = False
            self.signal()
        self.now = clock_ns()
        return True

    cdef int submit(self) except -1:
        cdef int answer
        with nogil:
            answer = self.uring.submit()
        if answer < 0:
            # What is begun could not be ended: as our own death.
            raise OSError(-answer, strerror(-answer))
        return 0

    def collect(self, object on_error):
        """Complete what io_uring has finished, and show it to the driver; return how many."""
        cdef Outcome outcomes[OUTCOMES]
        cdef Request request
        cdef int count, i, total = 0
        cdef object failure = None
        if self.uring is None:
            return 0
        count = OUTCOMES
        while count == OUTCOMES:
            with nogil:
                count = self.uring.reap(outcomes, OUTCOMES)
            if count < 0:
                raise OSError(-count, strerror(-count))
            total += count
            for i in range(count):
                # SAFETY: a tag of `hand_over`, which keeps the request until this.
                request = <Request><void *>outcomes[i].tag
                try:
                    error = request.take_back(&outcomes[i])
                    if error is not None:
                        self.request_failed(request, on_error, error)
                except BaseException as raised:
                    failure = raised
        self.flush()
        if failure is not None:
            raise failure
        return total

    def blame(self, Uring uring not None, uint64_t looks):
        """Note that this worker ends over what `uring` has had for so many looks; how many."""
        cdef uint64_t epoch = vu_load_relaxed64(uring.epoch)
        cdef Transfer *transfer
        cdef uint64_t head
        cdef uint32_t slot
        cdef int found = 0
        for slot in range(uring.fresh):
            # SAFETY: slot < fresh <= entries, the array's length.
            transfer = uring.transfers + slot
            if not transfer.busy or (epoch - transfer.epoch) % EPOCHS < looks:
                continue
            if self.device is not None:
                head = transfer.tag
            else:
                # SAFETY: a tag of `hand_over`, which keeps the request until it is taken back.
                head = (<Request><void *>transfer.tag)._head
            if head < <uint64_t>self.size and self.marks[head]:
                self.note_blamed(<uint16_t>head)
                found += 1
        return found

    cdef int request_failed(self, Request request, object on_error, object error) except -1:
        if self.counters is not None:
            add(&self.counters.block.errors, 1)
        try:
            on_error(request, error)
        finally:
            # No handler is left that would finish it.
            if request.is_open():
                request.close(request.count_written())
        return 0

    cdef void abandon(self) noexcept:
        # Wait for the kernel as for a blocking call: guest memory may go when this returns.
        cdef Outcome outcomes[OUTCOMES]
        cdef int count = self.uring.cancel(), i
        while count >= 0 and self.uring.in_flight:
            count = self.uring.wait()
            if count >= 0:
                count = self.uring.reap(outcomes, OUTCOMES)
            for i in range(count):
                # SAFETY: as in `collect`.
                (<Request><void *>outcomes[i].tag).give_up()
        if count < 0:
            abort()

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
        cdef uint8_t attempts, stage
        cdef object reason
        cdef uint64_t failures = device.failures, began
        if not self.begin("serve_native"):
            return False
        try:
            if self.device is not device:
                self.attach(device)
            while self.resumed < self.survivors and fetched < budget:
                got = self.resume(&chain, &attempts, &stage)
                if got < 0:
                    break
                fetched += 1
                reason = "poison" if attempts >= POISON else self.policy if stage else None
                began = self.now
                if reason is not None:
                    self.serve(self.request_of(&chain), None, on_error, attempts, reason)
                else:
                    with nogil:
                        self.serve_one(&chain, attempts)
                self.pace(self.now - began, STEP)
                if self.wanted():
                    break
            with nogil:
                if got > 0 and self.resumed == self.survivors:
                    got = self.serve_batch(budget, slice_ns, spin_ns, &fetched)
                device.submit()
        finally:
            self.draining = False
            self.flush()
            if self.counters is not None and device.failures != failures:
                add(&self.counters.block.errors, device.failures - failures)
        if got < 0:
            raise self.break_ring()
        return got > 0

    cdef int attach(self, NativeDevice device) except -1:
        if self.device is not None:
            raise RuntimeError("the ring has another native device already")
        if device.owner is not None:
            raise RuntimeError("the native device serves another ring")
        self.flights = <Flight *>calloc(self.size, sizeof(Flight))
        if self.flights == NULL:
            raise MemoryError
        self.device = device
        device.owner = self
        return 0

    cdef int serve_batch(
        self, int budget, uint64_t slice_ns, uint64_t spin_ns, int *fetched
    ) noexcept nogil:
        # Up to the budget, the end of the slice or a command of the master: 1. All that there was:
        # 0. A broken ring: -1.
        cdef Chain chain
        cdef uint64_t end = self.now + slice_ns, began
        cdef int got
        while fetched[0] < budget:
            got = self.fetch(&chain)
            if got < 0:
                return -1
            if got:
                fetched[0] += 1
                self.prefetch()
                began = self.now
                self.serve_one(&chain, 0)
                # Small steps keep a driver busy that looks for itself, and one that sleeps is not
                # to be called for each of them.
                self.pace(self.now - began, STEP)
            else:
                self.device.submit()
                self.device.reap()
                # The driver may answer what it is shown with new work, without a kick.
                if not self.flush() and not self.await_work(spin_ns):
                    return 0
            if self.now >= end or self.wanted():
                return 1
        return 1

    cdef bint wanted(self) noexcept nogil:
        # The worker's loop has something to do besides the requests.
        return self.counters is not None and self.counters.told()

    cdef void serve_one(self, Chain *chain, uint8_t attempts) noexcept nogil:
        cdef uint16_t head = chain.head
        cdef uint64_t began = self.now
        cdef int64_t written
        self.flights[head].began = began
        self.flights[head].readable = chain.readable
        self.marks[head] = HELD
        if self.counters is not None:
            set_busy(self.counters.block, 1 + <uint64_t>head)
        self.note_begun(head, attempts)
        written = self.device.serve(chain)
        self.now = clock_ns()
        if self.counters is not None:
            set_busy(self.counters.block, 0)
            add(&self.counters.block.heartbeat, 1)
        self.note_survived(head, attempts)
        if written >= 0:
            self.native_done(head, written)

    cdef void native_done(self, uint16_t head, uint64_t written) noexcept nogil:
        # Not HELD: completed already, or the ring has gone on without it.
        if head >= self.size or self.marks[head] != HELD:
            return
        self.marks[head] = 1
        self.complete(head, written, self.flights[head].readable, self.now - self.flights[head].began)

    cdef bint await_work(self, uint64_t spin_ns) noexcept nogil:
        # Look again and again for at most `spin_ns`, with kicks refused; True: there is something.
        cdef uint64_t end
        cdef int look
        if spin_ns == 0:
            return False
        self.now = clock_ns()
        end = self.now + spin_ns
        while self.now < end:
            for look in range(SPIN_LOOKS):
                if (
                    self.available()
                    or self.device is not None and self.device.reap()
                    or self.uring is not None and self.uring.ready()
                ):
                    self.now = clock_ns()
                    return True
                vu_pause()
            if self.wanted():
                return False
            self.now = clock_ns()
        return False

    cdef int resume(self, Chain *chain, uint8_t *attempts, uint8_t *stage) except -2:
        # The next request of a predecessor, its chain read anew; -1: the chain is malformed.
        cdef uint16_t head
        recovered = self.found[self.resumed]
        head = recovered.head
        attempts[0] = recovered.attempts
        stage[0] = recovered.stage
        if attempts[0]:
            # Should this one kill us too, what is done before it is not to be done again.
            self.flush()
        if self.fetch_again(head, chain) < 0:
            return -1
        self.resumed += 1
        self.flying += 1
        return 1

    cdef Request request_of(self, Chain *chain):
        cdef Request request
        try:
            request = Request.__new__(Request)
            request.open(self, self.memory, chain)
        except MemoryError:
            # A fetched head is completed or in flight, never forgotten (rule R2).
            self.complete(chain.head, 0, 0, 0)
            raise
        request.started = self.now
        return request

    cdef int serve(
        self, Request request, object handle, object on_error, uint8_t attempts, object reason
    ) except -1:
        # Runs the request, or has it skipped for the `reason`. It survived `attempts` deaths.
        cdef object answer
        cdef uint16_t head = request._head
        self.current = <void *>request
        if self.counters is not None:
            set_busy(self.counters.block, 1 + <uint64_t>head)
        if reason is None:
            self.note_begun(head, attempts)
        try:
            try:
                if reason is None:
                    answer = handle(request)
                    if answer is not None:
                        raise TypeError(f"handle returned {type(answer).__name__}, not None")
                elif self.on_skip is not None:
                    self.on_skip(request, reason, attempts)
                if request.state == OPEN and not request.is_deferred and request.is_open():
                    request.close(request.count_written())
            except BaseException as error:
                self.request_failed(request, on_error, error)
        finally:
            self.current = NULL
            self.now = clock_ns()
            if self.counters is not None:
                set_busy(self.counters.block, 0)
                add(&self.counters.block.heartbeat, 1)
            if request.epoch == self.epoch:
                if reason is None:
                    self.note_survived(head, attempts)
                if request.state == CLOSED:
                    self.complete(
                        head,
                        request.used,
                        request.total_readable - request.reading.left,
                        self.now - request.started,
                    )
        return 0

    cdef void request_closed(self, Request request) noexcept:
        # The one that is being handled is completed when its handler is done: one look at the
        # clock ends its time and begins the next one's.
        if self.current == <void *>request:
            return
        self.now = clock_ns()
        self.complete(
            request._head,
            request.used,
            request.total_readable - request.reading.left,
            self.now - request.started,
        )

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
        if self.device is not None:
            self.now = clock_ns()
            with nogil:
                self.device.reap()
                self.device.submit()
        return self.flush()

    def arm(self):
        """Ask for a kick at the next request; True if there is work already."""
        cdef int got
        self.check_sound()
        if self.stopped:
            return False
        got = self.ask_kicks()
        if got < 0:
            self.flush()
            raise self.break_ring()
        return got > 0 or self.resumed < self.survivors

    def disarm(self):
        """Ask for no kicks; the driver may kick still."""
        if self.failure is None and not self.stopped:
            self.refuse_kicks()

    def rebind(self, GuestMemory memory not None):
        """Go on in a new memory table."""
        self.check_sound()
        if self.stopped:
            return
        if self.flying and not memory.keeps(self.memory):
            raise ValueError(f"queue {self.queue}: {self.flying} requests in flight")
        # Used elements that are waiting belong to requests of the old table; the ring may move.
        self.flush()
        try:
            self.bind(memory)
        except Exception as error:
            self.cause = b"ring not covered by the new memory table"
            raise self.break_ring() from error
        self.memory = memory

    def stop(self, *, bint keep=False):
        """Let go of guest memory without touching it; return `next_avail`, the base."""
        if not self.stopped:
            if self.failure is None and not (
                keep or self.flying or self.batched or self.resumed < self.survivors
            ):
                self.note_end()
            self.stopped = True
            self.call_fd = -1
            self.detach()
        return self.last_avail

    cdef object check_sound(self):
        # A fresh exception each time: a kept one would hold the frames of the first traceback.
        if self.failure is not None:
            raise RingError(*self.failure.args)

    cdef object break_ring(self):
        error = RingError(self.queue, self.last_avail, self.cause.decode("ascii"))
        self.failure = RingError(*error.args)
        self.detach()
        return error

    cdef void detach(self) noexcept:
        # From here on no pointer into guest memory is left in the ring, and its requests know.

        cdef Py_ssize_t head
        if self.device is not None:
            for head in range(self.size):
                if self.marks[head] == HELD:
                    self.marks[head] = 1
            with nogil:
                self.device.settle()
            if self.device.uring is not None:
                self.device.uring.close()
                self.device.uring = None
            self.device.owner = None
            self.device = None
        if self.uring is not None:
            self.abandon()
            self.uring.close()
            self.uring = None
        self.epoch += 1
        self.batched = 0
        self.owed = False
        self.flying = 0
        self.resumed = self.survivors
        self.unbind()
        self.memory = None

    cdef int fetch(self, Chain *chain) noexcept nogil:
        return 0

    cdef int fetch_again(self, uint16_t head, Chain *chain) noexcept nogil:
        return 0

    cdef void prefetch(self) noexcept nogil:
        pass

    cdef int look(self) noexcept nogil:
        return 0

    cdef void note_begun(self, uint16_t head, uint8_t attempts) noexcept nogil:
        pass

    cdef void note_survived(self, uint16_t head, uint8_t attempts) noexcept nogil:
        pass

    cdef void note_blamed(self, uint16_t head) noexcept nogil:
        pass

    cdef void note_end(self) noexcept nogil:
        pass

    cdef int ask_kicks(self) noexcept nogil:
        return 0

    cdef void refuse_kicks(self) noexcept nogil:
        pass

    cdef bint available(self) noexcept nogil:
        return False

    cdef int bind(self, GuestMemory memory) except -1:
        return 0

    cdef void unbind(self) noexcept:
        pass
