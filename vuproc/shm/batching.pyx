# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""Requests served by Python, all that have come at a time.

Each of them is in the record as begun, for any may be what kills the worker. So those of a dead
worker come again one by one.
"""

from cpython.list cimport PyList_GET_ITEM
from cpython.ref cimport PyObject
from libc.stdint cimport INT64_MAX, uint8_t, uint64_t

from vuproc.shm.batch cimport at, batch_of
from vuproc.shm.completions cimport BATCH, pace, unknown_time
from vuproc.shm.counters cimport add, set_busy
from vuproc.shm.fetching cimport Again, note_begun, reason_to_skip
from vuproc.shm.handling cimport (
    Handling, Slice, complete_finished, is_over, is_wanted, slice_from
)
from vuproc.shm.request cimport CLOSED, OPEN, RELEASED, Chain, Request

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *one)


cdef class Batching(Handling):
    """A ring's requests as batches, from the fetch to the completion."""

    def drain_batch(
        self, object handle_batch, object on_error, int budget, uint64_t slice_ns=INT64_MAX
    ):
        """As `drain`, with all requests that are there in one call."""
        cdef int got = 1, fetched = 0
        cdef uint64_t epoch = self.epoch, began
        cdef bint ends = False
        cdef Chain chain
        cdef Again which
        cdef Request request
        cdef list requests
        cdef Slice turn
        cdef object reason
        if not self.begin("drain_batch"):
            return 0
        turn = slice_from(self.now, slice_ns)
        try:
            while not ends and self.again_next < self.again_end and fetched < budget:
                got = self.resume(&chain, &which)
                if got <= 0:
                    break
                fetched += 1
                reason = reason_to_skip(self, which.attempts, which.stage)
                request = self.request_of(&chain, which.order)
                if reason is None:
                    self.gather(request, which.attempts)
                    self.serve_together([request], handle_batch, on_error)
                else:
                    self.serve(request, None, on_error, which.attempts, reason)
                ends = self.epoch != epoch or is_over(self, &turn)
            # Nothing new goes before what comes again.
            ends = ends or self.again_next < self.again_end
            while not ends and fetched < budget:
                requests = self.fetch_some(budget - fetched, &got)
                if not requests and got == 0 and not self.missed and (self.batched or self.owed):
                    # The driver may answer what it is shown with new work, without a kick.
                    self.flush()
                    requests = self.fetch_some(budget - fetched, &got)
                if not requests:
                    break
                fetched += <int>len(requests)
                began = self.now
                self.serve_together(requests, handle_batch, on_error)
                self.keep(requests)
                ends = self.epoch != epoch or got < 0
                if not ends:
                    pace(self, self.now - began, BATCH)
                    if self.uring is not None:
                        self.submit()
                    ends = is_over(self, &turn)
        finally:
            self.end_turn()
            self.flush()
            if self.uring is not None:
                self.submit()
        if got < 0:
            raise self.break_ring()
        return fetched

    cdef list fetch_some(self, int most, int *got):
        # `got` as of `fetch`, the last time.
        cdef Chain chain
        cdef list requests = self.spare
        cdef Py_ssize_t spare, count = 0
        cdef Request request
        cdef uint64_t order
        self.spare = None
        if requests is None:
            requests = []
        spare = len(requests)
        # No more than the driver is shown at a time: it works on those meanwhile.
        while count < min(most, <int>BATCH):
            order = self.last_avail
            got[0] = self.fetch(&chain)
            if got[0] <= 0:
                break
            self.prefetch()
            if count < spare:
                request = at(requests, count)
                self.open_request(request, &chain, order)
            else:
                request = self.request_of(&chain, order)
                requests.append(request)
            self.gather(request, 0)
            count += 1
            if is_wanted(self):
                break
        if count == 0 and spare:
            # For those that come next.
            self.spare = requests
            return []
        if count < spare:
            del requests[count:]
        return requests

    cdef void keep(self, list requests) noexcept:
        # The objects of a batch for the next one, if nobody else has any of them. To make and to
        # free them is a good part of what a request costs.
        cdef PyObject *one
        cdef Py_ssize_t i
        if Py_REFCNT(<PyObject *>requests) > 1:
            return
        for i in range(len(requests)):
            one = PyList_GET_ITEM(requests, i)
            if Py_REFCNT(one) > 1 or not (<Request><void *>one).make_anew():
                return
        self.spare = requests

    cdef void gather(self, Request request, uint8_t attempts) noexcept:
        request.attempts = attempts
        request.started = 0
        note_begun(self, request._head, attempts)

    cdef int serve_together(
        self, list requests, object handle_batch, object on_error
    ) except -1:
        cdef uint64_t epoch = self.epoch
        cdef Py_ssize_t count = len(requests), i
        cdef Request request
        cdef object answer
        if self.counters is not None:
            set_busy(self.counters.block, 1 + <uint64_t>at(requests, 0)._head)
        self.gathered = True
        try:
            try:
                answer = handle_batch(batch_of(requests))
                if answer is not None:
                    raise TypeError(f"handle_batch returned {type(answer).__name__}, not None")
                for i in range(count):
                    request = at(requests, i)
                    if request.state == OPEN and not request.is_deferred and request.is_open():
                        request.close(request.count_written())
            except BaseException as error:
                self.fail_together(requests, on_error, error)
        finally:
            self.gathered = False
            self.tick()
            if self.counters is not None:
                set_busy(self.counters.block, 0)
                add(&self.counters.block.heartbeat, <uint64_t>count)
            for i in range(count):
                request = at(requests, i)
                if request.state == CLOSED and not request.finished_elsewhere:
                    continue
                # It goes on by itself.
                request.started = self.now
                if self.epoch == epoch and request.state != RELEASED:
                    self.note_attempts(request._head, request.attempts)
        return 0

    cdef int fail_together(self, list requests, object on_error, object error) except -1:
        # All that the handler has not seen to.
        cdef Request request
        cdef object failure = None
        for request in requests:
            if request.state == OPEN and not request.is_deferred and request.is_open():
                try:
                    self.request_failed(request, on_error, error)
                except BaseException as raised:
                    failure = raised
        if failure is not None:
            raise failure
        return 0

    cdef void request_closed(self, Request request) noexcept:
        if not self.gathered or request.started or self.elsewhere():
            Handling.request_closed(self, request)
            return
        # They have the time of all of them together, each its share: a look at the clock for each
        # would cost more than many of them do.
        self.note_attempts(request._head, request.attempts)
        self.unclocked += 1
        complete_finished(self, request, unknown_time())

    cdef void detach(self) noexcept:
        self.spare = None
        Handling.detach(self)
