# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""What the kernel does of a ring's requests, by io_uring: told of it, taken back, waited for."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abort

from vuproc.shm.atomics cimport vu_load_relaxed64
from vuproc.shm.counters cimport EPOCHS, add
from vuproc.shm.failures cimport os_error
from vuproc.shm.fetching cimport Fetching
from vuproc.shm.request cimport Request
from vuproc.shm.request_files cimport give_up, take_back
from vuproc.shm.transfers cimport OUTCOMES, Outcome, Transfer
from vuproc.shm.uring cimport Uring


cdef class UringWork(Fetching):
    """Requests that handlers have handed over to the ring's io_uring."""

    cdef int submit(self) except -1:
        cdef int answer
        with nogil:
            answer = self.uring.submit()
        if answer < 0:
            # What is begun could not be ended: as our own death.
            raise os_error(-answer)
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
                raise os_error(-count)
            total += count
            for i in range(count):
                # SAFETY: a tag of `hand_over`, which keeps the request until this.
                request = <Request><void *>outcomes[i].tag
                try:
                    error = take_back(request, &outcomes[i])
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
            head = self.head_of(transfer.tag)
            if head < <uint64_t>self.size and self.marks[head]:
                self.note_blamed(<uint16_t>head)
                found += 1
        return found

    cdef uint64_t head_of(self, uint64_t tag):
        # SAFETY: a tag of `hand_over`, which keeps the request until it is taken back.
        return (<Request><void *>tag)._head

    cdef int request_failed(self, Request request, object on_error, object error) except -1:
        if self.counters is not None:
            add(&self.counters.block.errors, 1)
        try:
            if on_error is None:
                raise error
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
                give_up(<Request><void *>outcomes[i].tag)
        if count < 0:
            abort()

    cdef void detach(self) noexcept:
        if self.uring is not None:
            self.abandon()
            self.uring.close()
            self.uring = None
        Fetching.detach(self)
