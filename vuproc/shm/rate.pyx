# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""How much of something may happen a second, shared by all processes that map the same word."""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint64_t, uintptr_t

from vuproc.shm.atomics cimport vu_load_relaxed64, vu_swap_if64
from vuproc.shm.clock cimport clock_ns

cdef enum:
    NS = 1000000000
    PAUSE_NS = 1000000

# A word that was written by somebody else may say anything: nobody waits for longer than 30 days.
# (No enumerator: those are ints.)
cdef int64_t LONGEST_NS = <int64_t>(30 * 86400) * NS

MOST = 1 << 40
WORD_BYTES = sizeof(uint64_t)


@cython.final
cdef class Rate:
    """A bucket of tokens as one word: the time (CLOCK_MONOTONIC, ns) at which it is full again.

    One swap takes tokens, so that a process which dies at whatever instruction has taken them or
    not, and needs no lock. The word orders nothing else: relaxed accesses do.
    """

    cdef Py_buffer _view
    cdef bint _held
    cdef uint64_t *word
    cdef double token_ns           # the time in which one comes
    cdef int64_t full_ns           # that in which an empty bucket fills

    def __cinit__(self, object buffer, Py_ssize_t index, double per_second, double burst):
        if not (0 < per_second <= MOST and 1 <= burst <= MOST):
            raise ValueError(f"a rate of {per_second} a second with bursts of {burst}")
        PyObject_GetBuffer(buffer, &self._view, PyBUF_WRITABLE)
        self._held = True
        if not 0 <= index < self._view.len // <Py_ssize_t>sizeof(uint64_t):
            raise ValueError(f"no word {index} in a buffer of {self._view.len} bytes")
        if <uintptr_t>self._view.buf % sizeof(uint64_t):
            raise ValueError("buffer is not aligned to 8 bytes")
        # SAFETY: (index + 1) * 8 <= len by the check above; the view pins the buffer.
        self.word = <uint64_t *>self._view.buf + index
        self.token_ns = NS / per_second
        self.full_ns = min(<int64_t>(burst * self.token_ns), LONGEST_NS)
        if not self.full_ns:
            self.full_ns = 1

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._view)

    def grant(self, int wanted):
        """Take up to so many tokens; how many there were."""
        cdef uint64_t before, now
        cdef int64_t full_in
        cdef int granted
        if wanted <= 0:
            return 0
        while True:
            before = vu_load_relaxed64(self.word)
            now = clock_ns()
            full_in = self.full_in(before, now)
            granted = <int>min((self.full_ns - full_in) / self.token_ns, <double>wanted)
            if granted <= 0:
                return 0
            if self.swap(before, now, full_in + self.time_of(granted)):
                return granted

    def spend(self, double tokens):
        """Take so many, also if that is more than there are: those that follow wait the longer. A
        negative number gives back.
        """
        cdef uint64_t before, now
        while tokens:
            before = vu_load_relaxed64(self.word)
            now = clock_ns()
            if self.swap(before, now, self.full_in(before, now) + self.time_of(tokens)):
                return

    def wait_ns(self):
        """Nanoseconds until it is worth while to ask again; 0: now."""
        cdef int64_t full_in = self.full_in(vu_load_relaxed64(self.word), clock_ns())
        # What comes in a pause may come together: nobody is to wake up for each token. A bucket that
        # a fraction of a token fills has one as soon as it is full.
        cdef int64_t pause = min(<int64_t>PAUSE_NS, self.full_ns // 2)
        cdef int64_t room = self.full_ns - min(max(self.time_of(1), pause), self.full_ns)
        return max(full_in - room, 0)

    cdef int64_t time_of(self, double tokens) noexcept nogil:
        # Never less than the time is: a rate is not to be exceeded by rounding.
        cdef double time = tokens * self.token_ns
        cdef int64_t whole
        if time >= <double>LONGEST_NS:
            return LONGEST_NS
        if time <= -<double>LONGEST_NS:
            return -LONGEST_NS
        whole = <int64_t>time
        return whole + (whole < time)

    cdef int64_t full_in(self, uint64_t word, uint64_t now) noexcept nogil:
        # 0 if it is full, and has been for whatever time.
        return <int64_t>min(word - now, <uint64_t>LONGEST_NS) if word > now else 0

    cdef bint swap(self, uint64_t before, uint64_t now, int64_t full_in) noexcept nogil:
        return vu_swap_if64(self.word, before, now + <uint64_t>max(min(full_in, LONGEST_NS), 0))
