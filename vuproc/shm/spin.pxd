"""C interface of the window before a sleep: asked and taught without the GIL."""

from libc.stdint cimport uint64_t

from vuproc.shm.counters cimport QueueCounters


cdef class Spin:
    cdef QueueCounters counters    # those of one of the worker's queues; None: nobody else counts
    cdef bint fixed
    cdef bint allowed
    cdef uint64_t window           # ns
    cdef uint64_t cpus
    cdef uint64_t checked          # ns, of the last look at who else wants the CPUs
    cdef uint64_t refrain_until    # ns
    cdef uint64_t taken            # the CPU was taken away so often until then
    cdef bint looks                # before the next sleep
    cdef uint64_t hits             # so often looks have found something, at the last sleep
    cdef uint64_t vain             # sleeps since then that a look came before
    cdef uint64_t skipped          # sleeps after which there is no look whatever they were, from now
    cdef uint64_t skips            # the same, when looks are in vain the next time

    cdef uint64_t window_at(self, uint64_t now) noexcept nogil
    cdef void learn(self, uint64_t nanoseconds, uint64_t hits) noexcept nogil
    cdef void judge(self, uint64_t now, uint64_t taken) noexcept nogil
