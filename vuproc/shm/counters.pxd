"""C interface of one queue's counters: the layout of the block, and counting without the GIL."""

from libc.stdint cimport uint64_t

from vuproc.shm.atomics cimport vu_load_relaxed64, vu_store_relaxed64


cdef enum:
    BUCKET_COUNT = 32
    EPOCHS = 8                     # more than the age at which anybody is looked for


cdef struct Block:
    # 512 bytes, native byte order. Version 1 of the layout: the segment's header tells.
    # counter_table.py has a row for each that is shown to anybody.
    uint64_t requests              # completed
    uint64_t bytes_read            # bytes which the device read from the driver
    uint64_t bytes_written         # bytes which it wrote: the sum of the used lengths
    uint64_t errors                # requests which failed in the device's code
    uint64_t kicks                 # wake-ups by the driver
    uint64_t calls                 # notifications sent
    uint64_t call_errors           # and such as could not be sent
    uint64_t heartbeat             # any change says that the worker gets on
    uint64_t latency[BUCKET_COUNT] # from fetch to completion: bucket i holds 2^i <= ns < 2^(i+1)
    uint64_t latency_total         # sum of all, in ns
    uint64_t busy                  # 0, or 1 + the head of the request in the device's code
    uint64_t awake                 # 1 unless the worker of the queue sleeps
    uint64_t commands              # the master's: those sent to the queue's worker
    uint64_t hooks                 # odd while the worker is inside a hook of the device
    uint64_t epoch                 # the master's: advances while it looks for what takes too long
    uint64_t handed[EPOCHS]        # requests that the kernel has, by the epoch of their begin
    uint64_t dropped               # what the device has thrown away, as it counts it itself
    uint64_t skipped               # requests that are not run again, for they cost workers or may not
    uint64_t restarts              # the master's: workers that were lost
    uint64_t stalls                # the master's: replacements that serve
    uint64_t stall_total           # the master's: from the loss to that, the sum of all, in ns
    uint64_t stall_last            # the master's: the last of them
    uint64_t breaks                # the master's: times that the ring broke
    uint64_t reserved[3]


cdef inline void add(uint64_t *word, uint64_t amount) noexcept nogil:
    # One writer, so no locked instruction; pairs with the relaxed loads of `snapshot` elsewhere.
    vu_store_relaxed64(word, vu_load_relaxed64(word) + amount)


cdef inline void set_busy(Block *block, uint64_t value) noexcept nogil:
    vu_store_relaxed64(&block.busy, value)


cdef class QueueCounters:
    cdef Py_buffer _view
    cdef bint _held
    cdef Py_buffer _trace_view     # the queue's trace,
    cdef bint _traced              # if it has one
    cdef Block _nowhere            # what is counted into after `release`
    cdef Block *block
    cdef readonly Py_ssize_t queue
    cdef uint64_t noted            # `commands` at the worker's last look; one less if it found some

    cdef void completed(
        self, uint64_t bytes_read, uint64_t bytes_written, uint64_t nanoseconds
    ) noexcept nogil
    # The same in two steps: what there is to count, and later how long each of so many took.
    cdef void ended(
        self, uint64_t count, uint64_t bytes_read, uint64_t bytes_written
    ) noexcept nogil
    cdef void took(self, uint64_t count, uint64_t nanoseconds) noexcept nogil
    cdef uint64_t awake(self) noexcept nogil
    cdef void be_awake(self, bint awake) noexcept nogil


cdef inline bint has_command(QueueCounters counters) noexcept nogil:
    # Whether the master has sent a command since `note_commands`. Relaxed: it only has the worker
    # look at its channel.
    return vu_load_relaxed64(&counters.block.commands) != counters.noted
