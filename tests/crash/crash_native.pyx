# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The native devices of the crash tests: they say in the journal what they do, and may die at it."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from vuproc.devices.blk_native cimport NativeBlk
from vuproc.shm.native cimport DEFERRED, NativeDevice, copy_in, copy_out
from vuproc.shm.request cimport Chain

cdef extern from "atomics.h" nogil:
    void vu_crash_point()
    void vu_compiler_barrier()

cdef enum:
    RAN = 0
    BEGUN = 2
    LENGTH = 8
    ROOM = 64

cdef uint64_t KEY = 0x5A5A5A5A5A5A5A5A


cdef struct Entry:
    uint32_t life
    uint32_t number
    uint32_t kind


cdef class Book:
    """The journal of tests.crash.worker: a count, and the entries."""

    cdef Py_buffer view
    cdef uint32_t life

    def __cinit__(self, memory, uint32_t life):
        PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE)
        self.life = life

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    cdef void append(self, uint32_t number, uint32_t kind) noexcept nogil:
        cdef uint64_t *count = <uint64_t *>self.view.buf
        cdef Entry *entry = <Entry *>(<char *>self.view.buf + 8) + count[0]
        entry.life = self.life
        entry.number = number
        entry.kind = kind
        vu_compiler_barrier()
        count[0] += 1


cdef class Answering(NativeDevice):
    """What the handler in Python does."""

    cdef Book book
    cdef bint defer
    cdef int handled
    cdef int seen
    cdef uint16_t held[ROOM]
    cdef int holding

    def prepare(self, memory, life, defer):
        self.book = Book(memory, life)
        self.defer = defer

    cdef int64_t serve(self, Chain *chain) noexcept nogil:
        cdef uint64_t number = 0, answer
        copy_out(chain, 0, &number, LENGTH)
        self.book.append(number, BEGUN)
        vu_crash_point()
        self.book.append(number, RAN)
        answer = number ^ KEY
        copy_in(chain, 0, &answer, LENGTH)
        vu_crash_point()
        self.handled += 1
        if self.defer and self.handled % 2:
            self.held[self.holding] = chain.head
            self.holding += 1
            return DEFERRED
        return LENGTH

    cdef int reap(self, int queue) noexcept nogil:
        # Newest first, and the oldest not as long as there is something newer.
        cdef int kept = 1 if self.handled != self.seen else 0
        cdef int count = 0
        self.seen = self.handled
        while self.holding > kept:
            self.holding -= 1
            self.complete(queue, self.held[self.holding], LENGTH)
            count += 1
        return count

    cdef void settle(self, int queue) noexcept nogil:
        self.holding = 0


cdef class Pulling(Answering):
    """The same by requests that it pulls; those after `last` it gives back each time."""

    cdef public uint64_t last

    def pull_some(self, int budget):
        """As many as there are, or the budget; their number."""
        cdef Chain chain
        cdef int count = 0
        cdef int64_t written
        cdef uint64_t number
        with nogil:
            while count < budget and self.pull(0, &chain) > 0:
                count += 1
                number = 0
                copy_out(&chain, 0, &number, LENGTH)
                if number > self.last:
                    vu_crash_point()
                    self.give_back(0, chain.head, chain.order)
                    vu_crash_point()
                    continue
                written = self.serve(&chain)
                if written >= 0:
                    self.complete(0, chain.head, written)
            self.show(0)
        return count


cdef class Disk(NativeBlk):
    """The native disk; the number of a request stands in its header's second word."""

    cdef Book book

    def prepare(self, memory, life, defer):
        self.book = Book(memory, life)

    cdef int64_t serve(self, Chain *chain) noexcept nogil:
        cdef uint32_t words[2]
        cdef int64_t written
        copy_out(chain, 0, words, sizeof(words))
        self.book.append(words[1], BEGUN)
        vu_crash_point()
        self.book.append(words[1], RAN)
        written = NativeBlk.serve(self, chain)
        vu_crash_point()
        return written
