# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""Requests served by a handler in Python, and those that a device pulls."""

from cpython.ref cimport PyObject
from libc.stdint cimport INT64_MAX, uint8_t, uint16_t, uint64_t
from posix.unistd cimport write

from vuproc.shm.completions cimport BATCH, pace, time_of
from vuproc.shm.counters cimport add, set_busy
from vuproc.shm.fetching cimport Again, note_begun, note_taken, reason_to_skip
from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.request cimport CLOSED, OPEN, RELEASED, Chain, Request
from vuproc.shm.uring_work cimport UringWork

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil
    Py_ssize_t Py_REFCNT(PyObject *one)

cdef enum:
    # Requests after which the kernel is told of what there is for it, in the middle of a batch: the
    # disk is not to wait for the last of them.
    SUBMIT = 16


cdef uint64_t hurries = 0
"""Calls of `hurry`: a process has one loop."""


def hurry():
    """The loop has something to do besides a turn that goes on: it may last SLICE_NS in all.

    May be called by any thread.
    """
    global hurries
    hurries += 1


cdef Slice slice_from(uint64_t now, uint64_t nanoseconds) noexcept nogil:
    cdef Slice turn
    turn.end = now + nanoseconds
    turn.soon = now + min(nanoseconds, <uint64_t>SHORT_SLICE)
    turn.hurries = hurries
    return turn


cdef bint is_over(Handling ring, Slice *turn) noexcept nogil:
    # Of a turn in Python: it has lasted long enough, or the loop is wanted.
    if ring.now >= turn.soon and (ring.now >= turn.end or turn.hurries != hurries):
        return True
    return is_wanted(ring)


cdef class Handling(UringWork):
    """A ring's requests as Python objects, from the fetch to the completion."""

    def __cinit__(self):
        self.from_threads = []
        self.waker = -1
        self.opening = -1

    def drain(self, object handle, object on_error, int budget, uint64_t slice_ns=INT64_MAX):
        """Fetch and handle up to `budget` requests; return how many were fetched."""
        cdef Chain chain
        cdef Request request = None
        cdef int got = 0, fetched = 0
        cdef uint64_t epoch = self.epoch, began
        cdef Again which
        cdef Slice turn
        cdef object reason
        if not self.begin("drain"):
            return 0
        turn = slice_from(self.now, slice_ns)
        try:
            while fetched < budget:
                which.attempts = 0
                reason = None
                if self.again_next < self.again_end:
                    got = self.resume(&chain, &which)
                    reason = reason_to_skip(self, which.attempts, which.stage)
                else:
                    which.order = self.last_avail
                    got = self.fetch(&chain)
                if got == 0 and not self.missed and (self.batched or self.owed):
                    # The driver may answer what it is shown with new work, without a kick.
                    self.flush()
                    got = self.fetch(&chain)
                if got <= 0:
                    break
                fetched += 1
                self.prefetch()
                began = self.now
                if request is None:
                    request = self.request_of(&chain, which.order)
                else:
                    self.open_request(request, &chain, which.order)
                self.serve(request, handle, on_error, which.attempts, reason)
                # The same object for the next one, if nobody else has it: to make and to free one
                # is a good part of what a request costs.
                if Py_REFCNT(<PyObject *>request) > 1 or not request.make_anew():
                    request = None
                if self.epoch != epoch:
                    # The handler stopped the ring.
                    break
                pace(self, self.now - began, BATCH)
                if self.uring is not None and fetched % SUBMIT == 0:
                    self.submit()
                if is_over(self, &turn):
                    break
        finally:
            self.end_turn()
            self.flush()
            if self.uring is not None:
                self.submit()
        if got < 0:
            raise self.break_ring()
        return fetched

    def take(self):
        """Fetch one request for a device that pulls; None if there is none."""
        cdef Chain chain
        cdef Request request
        cdef int got = 0
        cdef Again which
        if self.elsewhere():
            raise RuntimeError("take is for the worker's thread: use call_soon")
        if not self.begin("take"):
            return None
        try:
            got = self.next_again(&chain, &which)
            if got == NO_MORE:
                which.order = self.last_avail
                got = self.fetch_or_arm(&chain)
            if got > 0:
                request = self.request_of(&chain, which.order)
                note_taken(self, chain.head)
                request.is_deferred = True
                return request
        finally:
            self.end_turn()
            if got <= 0:
                self.flush()
        if got < 0:
            raise self.break_ring()
        return None

    cdef int next_again(self, Chain *chain, Again *which) except -2:
        cdef Request request
        cdef int got
        while self.again_next < self.again_end:
            got = self.resume(chain, which)
            if got <= 0:
                return got
            reason = reason_to_skip(self, which.attempts, which.stage)
            if reason is None:
                return 1
            request = self.request_of(chain, which.order)
            self.serve(request, None, None, which.attempts, reason)
            if self.stopped or self.failure is not None:
                # `on_skip` has stopped the ring.
                return 0
        return NO_MORE

    cdef int fetch_or_arm(self, Chain *chain) noexcept nogil:
        cdef int got
        while True:
            got = self.fetch(chain)
            if got == 0 and not self.missed and (self.batched or self.owed):
                # The driver may answer what it is shown with new work, without a kick.
                self.flush()
                got = self.fetch(chain)
            if got != 0 or self.missed:
                return got
            # As `arm`: with the wish for a kick comes another look.
            got = self.ask_kicks()
            if got <= 0:
                return got
            self.refuse_kicks()

    def finish_together(self, list requests not None):
        """Complete requests so that the driver sees all of them at once, or none yet."""
        cdef Request request
        if self.elsewhere():
            raise RuntimeError("finish_together is for the worker's thread: use call_soon")
        if len(requests) > BATCH:
            raise ValueError(f"{len(requests)} requests, of at most {BATCH} at once")
        for request in requests:
            request.check()
            if request.owner is not self:
                raise ValueError(f"a request of queue {request.number} in queue {self.queue}")
        if self.batched + <int>len(requests) > BATCH:
            # A batch is shown by one store, and would be full in the midst of them.
            self.flush()
        for request in requests:
            request.finish()

    def step_begins(self, Request request not None):
        """The device's code goes on with a request that is deferred; what kills us now is it."""
        if request.state == OPEN and request.epoch == self.epoch:
            if self.counters is not None:
                set_busy(self.counters.block, 1 + <uint64_t>request._head)
            note_begun(self, request._head, request.attempts)

    def step_ends(self, Request request not None):
        """It waits again, or is done."""
        if self.counters is not None:
            set_busy(self.counters.block, 0)
            add(&self.counters.block.heartbeat, 1)
        if request.state == OPEN and request.epoch == self.epoch:
            self.note_attempts(request._head, request.attempts)

    cdef bint begin(self, str what) except -1:
        # A turn begins; False: the ring is stopped.
        if self.draining:
            raise RuntimeError(f"{what} called from a handler of the same queue")
        self.check_sound()
        if self.stopped:
            return False
        self.draining = True
        self.thread = PyThread_get_thread_ident()
        if self.from_threads:
            self.take_from_threads()
        self.missed = False
        self.refuse_kicks()
        if self.call_after_recovery:
            self.call_after_death()
        self.tick()
        return True

    def call_after_death(self):
        """Call the driver once if a worker before us may have died before it did so."""
        if self.call_after_recovery:
            self.call_after_recovery = False
            self.signal()

    cdef Request request_of(self, Chain *chain, uint64_t order):
        cdef Request request
        # There may be no memory for it: `end_turn` knows of the head from here on.
        self.opening = chain.head
        request = Request.__new__(Request)
        self.open_request(request, chain, order)
        return request

    cdef int open_request(self, Request request, Chain *chain, uint64_t order) except -1:
        self.opening = chain.head
        if self.granted is None:
            request.open(self, self.memory, chain)
        else:
            request.open(self, self.memory_of(chain.head), chain)
        self.opening = -1
        request.started = self.now
        request.order = order
        return 0

    cdef void end_turn(self) noexcept:
        self.draining = False
        if self.unclocked:
            # What comes now is not their time.
            self.tick()
        if self.opening >= 0:
            # There was no memory for its request. A fetched head is completed or in flight, never
            # forgotten (rule R2).
            self.complete(<uint16_t>self.opening, 0, 0, 0)
            self.opening = -1

    cdef GuestMemory memory_of(self, uint16_t head):
        # Where the views of its pieces are found.
        mappings = self.granted.get(head)
        return self.memory if mappings is None else self.memory.holding(mappings)

    cdef int serve(
        self, Request request, object handle, object on_error, uint8_t attempts, object reason
    ) except -1:
        # Runs the request, or has it skipped for the `reason`. It survived `attempts` deaths.
        cdef object answer
        cdef uint16_t head = request._head
        cdef uint64_t took
        self.current = <void *>request
        request.attempts = attempts
        if self.counters is not None:
            set_busy(self.counters.block, 1 + <uint64_t>head)
        if reason is None:
            note_begun(self, head, attempts)
        try:
            try:
                if reason is None:
                    answer = handle(request)
                    if answer is not None:
                        raise TypeError(f"handle returned {type(answer).__name__}, not None")
                else:
                    if self.counters is not None:
                        add(&self.counters.block.skipped, 1)
                    if self.on_skip is not None:
                        self.on_skip(request, reason, attempts)
                if request.state == OPEN and not request.is_deferred and request.is_open():
                    request.close(request.count_written())
            except BaseException as error:
                self.request_failed(request, on_error, error)
        finally:
            self.current = NULL
            took = time_of(self)
            if self.counters is not None:
                set_busy(self.counters.block, 0)
                add(&self.counters.block.heartbeat, 1)
            if request.epoch == self.epoch:
                if reason is None and request.state != RELEASED:
                    self.note_attempts(head, attempts)
                if request.state == CLOSED and not request.finished_elsewhere:
                    complete_finished(self, request, took)
        return 0

    cdef void request_closed(self, Request request) noexcept:
        # The one that is being handled is completed when its handler is done, whoever finished it:
        # one look at the clock ends its time and begins the next one's.
        if self.current == <void *>request:
            return
        if self.elsewhere():
            self.note_elsewhere(request)
            return
        self.tick()
        complete_finished(self, request, self.now - request.started)

    cdef void note_elsewhere(self, Request request) noexcept:
        # By another thread, which has the GIL: the ring is not its to touch.
        cdef uint64_t one = 1
        request.finished_elsewhere = True
        hurry()
        try:
            self.from_threads.append(request)
        except MemoryError:
            # It stays in flight, as one that the device has lost.
            self.lost += 1
        if self.waker >= 0:
            # Full is as good as written: somebody is to wake up.
            write(self.waker, &one, sizeof(one))

    cdef int take_from_threads(self) except -1:
        # Those that other threads have finished by now.
        cdef Request request
        cdef list finished = self.from_threads
        self.from_threads = []
        self.tick()
        for request in finished:
            if request.epoch == self.epoch:
                complete_finished(self, request, self.now - request.started)
        return 0

    cdef void detach(self) noexcept:
        self.from_threads = []
        UringWork.detach(self)
