# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""One block of counters a queue, in memory that outlives the worker which counts."""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset

from vuproc.shm.atomics cimport (
    vu_load_acquire64, vu_load_relaxed64, vu_store_relaxed64, vu_store_release64,
)

cdef extern from *:
    """
    static inline int vu_log2(uint64_t value)
    {
        return value ? 63 - __builtin_clzll(value) : 0;
    }
    """
    int vu_log2(uint64_t value) noexcept nogil

from vuproc.shm.counter_table import WORDS, CountersSnapshot

BLOCK_SIZE = sizeof(Block)
cdef enum:
    TRACE_BYTES = 64               # of an entry of a trace, and of its header
BUCKETS = BUCKET_COUNT
PLACES = tuple([word.place for word in WORDS.values()])
GROWING = tuple([word.place for word in WORDS.values() if word.counter])
if max(PLACES) >= <Py_ssize_t>(sizeof(Block) // sizeof(uint64_t)):
    raise ValueError(f"a counter at word {max(PLACES)}, which no block has")


def block_bytes(Py_ssize_t queues):
    """Bytes of buffer that the blocks of `queues` queues take."""
    return queues * sizeof(Block)


@cython.final
cdef class QueueCounters:
    """One queue's block in a shared buffer: each word has one writer, the queue's worker or, for
    some, the master; any process may read it.
    """

    def __cinit__(self, object buffer, Py_ssize_t queue):
        self.block = &self._nowhere
        # A Segment, or memory itself.
        PyObject_GetBuffer(getattr(buffer, "buffer", buffer), &self._view, PyBUF_WRITABLE)
        self._held = True
        if not 0 <= queue < self._view.len // <Py_ssize_t>sizeof(Block):
            raise ValueError(f"no block {queue} in a buffer of {self._view.len} bytes")
        if <uintptr_t>self._view.buf % sizeof(uint64_t):
            raise ValueError("buffer is not aligned to 8 bytes")
        # SAFETY: (queue + 1) * sizeof(Block) <= len by the check above; the view pins the buffer.
        self.block = <Block *>self._view.buf + queue
        self.queue = queue

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._view)
        if self._traced:
            PyBuffer_Release(&self._trace_view)

    def trace(self, object buffer):
        """Have rings that are made from now on note each request in this memory."""
        cdef Py_ssize_t room
        cdef uint64_t *words
        if self._traced:
            raise ValueError("the queue is traced already")
        PyObject_GetBuffer(buffer, &self._trace_view, PyBUF_WRITABLE)
        self._traced = True
        room = self._trace_view.len // TRACE_BYTES - 1
        if room <= 0 or room & (room - 1) or <uintptr_t>self._trace_view.buf % sizeof(uint64_t):
            PyBuffer_Release(&self._trace_view)
            self._traced = False
            raise ValueError(f"a trace of {room} requests, which is no power of two, or not aligned")
        # SAFETY: the header is as long as an entry (trace.pxd), and there is one at least.
        words = <uint64_t *>self._trace_view.buf
        vu_store_relaxed64(words, <uint64_t>room)
        vu_store_relaxed64(words + 2, vu_load_relaxed64(words + 2) + 1)

    cdef void completed(
        self, uint64_t bytes_read, uint64_t bytes_written, uint64_t nanoseconds
    ) noexcept nogil:
        self.ended(1, bytes_read, bytes_written)
        self.took(1, nanoseconds)

    cdef void ended(
        self, uint64_t count, uint64_t bytes_read, uint64_t bytes_written
    ) noexcept nogil:
        cdef Block *block = self.block
        add(&block.requests, count)
        add(&block.bytes_read, bytes_read)
        add(&block.bytes_written, bytes_written)

    cdef void took(self, uint64_t count, uint64_t nanoseconds) noexcept nogil:
        cdef Block *block = self.block
        add(&block.latency[min(vu_log2(nanoseconds), BUCKET_COUNT - 1)], count)
        add(&block.latency_total, count * nanoseconds)

    def count_kick(self):
        """Count one wake-up by the driver."""
        add(&self.block.kicks, 1)

    def count_error(self):
        """Count one failed request."""
        add(&self.block.errors, 1)

    def count_dropped(self, uint64_t count):
        """The device has thrown away so many of what it was to pass on."""
        add(&self.block.dropped, count)

    def count_restart(self):
        """The queue has lost a worker."""
        add(&self.block.restarts, 1)

    def count_stall(self, uint64_t nanoseconds):
        """It has another, after so long."""
        add(&self.block.stalls, 1)
        add(&self.block.stall_total, nanoseconds)
        vu_store_relaxed64(&self.block.stall_last, nanoseconds)

    def count_break(self):
        """Its ring has broken."""
        add(&self.block.breaks, 1)

    def add_counts(self, object other not None):
        """Add what another block has counted, of what only ever grows."""
        cdef QueueCounters more = other
        cdef uint64_t *words = <uint64_t *>self.block
        cdef uint64_t *added = <uint64_t *>more.block
        cdef Py_ssize_t at
        cdef int i
        # SAFETY: each place was compared with the block's length.
        for at in GROWING:
            add(&words[at], vu_load_relaxed64(&added[at]))
        for i in range(BUCKET_COUNT):
            add(&self.block.latency[i], vu_load_relaxed64(&more.block.latency[i]))

    def beat(self):
        """Advance the heartbeat word."""
        add(&self.block.heartbeat, 1)

    def count_hook(self):
        """A hook of the device begins, or ends."""
        add(&self.block.hooks, 1)

    def leave_hooks(self):
        """A worker takes over, perhaps from one that died inside a hook."""
        if vu_load_relaxed64(&self.block.hooks) & 1:
            add(&self.block.hooks, 1)

    def hooks(self):
        """The word that `count_hook` advances."""
        return vu_load_relaxed64(&self.block.hooks)

    def set_awake(self, bint awake):
        """Say whether the worker sleeps."""
        self.be_awake(awake)

    cdef void be_awake(self, bint awake) noexcept nogil:
        vu_store_relaxed64(&self.block.awake, awake)

    def count_command(self):
        """The master has sent the queue's worker a command."""
        # Release: pairs with the acquire load of `note_commands`. What is counted is in the channel.
        vu_store_release64(&self.block.commands, vu_load_relaxed64(&self.block.commands) + 1)

    def note_commands(self):
        """The worker is about to look for commands: those counted so far will be found."""
        self.noted = vu_load_acquire64(&self.block.commands)

    def note_command(self):
        """It has found one, and there may be another."""
        self.noted = vu_load_relaxed64(&self.block.commands) - 1

    @property
    def command_pending(self):
        """Whether the master has sent a command since `note_commands`."""
        return has_command(self)

    def advance(self):
        """The master looks once more: what is begun from now on is younger than what was."""
        vu_store_relaxed64(&self.block.epoch, vu_load_relaxed64(&self.block.epoch) + 1)

    def handed_since(self, uint64_t looks):
        """The number of requests that the kernel has, and had when `advance` was called for the
        last time but `looks - 1`.
        """
        cdef Block *block = self.block
        cdef uint64_t epoch = vu_load_relaxed64(&block.epoch), age = looks, found = 0
        while age < EPOCHS:
            found += vu_load_relaxed64(&block.handed[(epoch - age) % EPOCHS])
            age += 1
        return found

    def hand_none(self):
        """The kernel has nothing of this worker's."""
        cdef int i
        for i in range(EPOCHS):
            vu_store_relaxed64(&self.block.handed[i], 0)

    def count_awake(self):
        """The number of queues, of all in the buffer, whose workers do not sleep."""
        return self.awake()

    cdef uint64_t awake(self) noexcept nogil:
        cdef Block *blocks = <Block *>self._view.buf
        cdef uint64_t found = 0
        cdef Py_ssize_t i
        if not self._held:
            return 0
        # SAFETY: whole blocks of the buffer that the view pins.
        for i in range(self._view.len // <Py_ssize_t>sizeof(Block)):
            found += vu_load_relaxed64(&blocks[i].awake) != 0
        return found

    def clear(self):
        """Set the whole block to zero."""
        cdef uint64_t *words = <uint64_t *>self.block
        cdef size_t i
        for i in range(sizeof(Block) // sizeof(uint64_t)):
            vu_store_relaxed64(&words[i], 0)

    def requests(self):
        """How many were completed."""
        return vu_load_relaxed64(&self.block.requests)

    def busy(self):
        """What is being served: the word of the snapshot."""
        return vu_load_relaxed64(&self.block.busy)

    def work(self):
        """The words of the snapshot that tell whether the worker gets on: `busy`, `heartbeat` and
        `hooks`.
        """
        return (
            vu_load_relaxed64(&self.block.busy),
            vu_load_relaxed64(&self.block.heartbeat),
            vu_load_relaxed64(&self.block.hooks),
        )

    def snapshot(self):
        """Read the block."""
        cdef uint64_t *words = <uint64_t *>self.block
        cdef Py_ssize_t at
        cdef int i
        # SAFETY: each place was compared with the block's length.
        return CountersSnapshot(
            *[vu_load_relaxed64(&words[at]) for at in PLACES],
            tuple([vu_load_relaxed64(&self.block.latency[i]) for i in range(BUCKET_COUNT)]),
        )

    def release(self):
        """Give the buffer back; the counters count into nowhere from then on."""
        memset(&self._nowhere, 0, sizeof(Block))
        self.block = &self._nowhere
        if self._held:
            self._held = False
            PyBuffer_Release(&self._view)
