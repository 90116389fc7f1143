# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""How long a worker looks for work before it sleeps: a window that tunes itself.

To be woken costs the driver's side a system call and both sides some microseconds, so a worker
whose sleeps turn out short looks again and again instead. It does so only where that takes the CPU
from nobody: not if more workers of the device are awake than there are CPUs, nor if others want
this one's CPU. Nor does it after the shortest of sleeps, which another CPU's kick is too slow for:
the driver has run on this CPU meanwhile, and were it to be kept from there, it would have to be
woken on one that has halted, for ten times the time. And not while it finds nothing by it, however
short the sleeps are: some drivers do not get on while a worker looks, since they have this CPU, or
take longer to come than it looks. Such looks are tried again after so many sleeps, and after twice
as many the next time.
"""

cimport cython
from libc.stdint cimport uint64_t

from vuproc.shm.clock cimport clock_ns
from vuproc.shm.counters cimport QueueCounters

cdef extern from "<sys/resource.h>" nogil:
    cdef struct rusage:
        long ru_nivcsw
    int RUSAGE_SELF
    int getrusage(int who, rusage *usage)

cdef enum:
    SAME = 5000
    FIRST = 10000
    LONGEST = 50000
    CHECK = 10000000
    REFRAIN = 100000000
    MOST = 2
    VAIN = 64
    LEAST_SKIPPED = 64
    MOST_SKIPPED = 4096

SAME_NS = SAME
FIRST_NS = FIRST
LONGEST_NS = LONGEST
CHECK_NS = CHECK
REFRAIN_NS = REFRAIN
MOST_TAKEN = MOST
MOST_VAIN = VAIN
FIRST_SKIPPED, LAST_SKIPPED = LEAST_SKIPPED, MOST_SKIPPED


@cython.final
cdef class Spin:
    """The window of one worker."""

    def __cinit__(self, object poll, QueueCounters counters, uint64_t cpus):
        self.fixed = poll != "auto"
        self.window = poll * 1000 if isinstance(poll, int) else 0
        self.counters = counters
        self.cpus = cpus
        self.allowed = True
        self.skips = LEAST_SKIPPED

    @property
    def window_ns(self):
        """Nanoseconds to look for work before the next sleep; 0: sleep at once."""
        return self.window_at(clock_ns())

    def window_now(self, uint64_t now):
        """The same at this time, in ns."""
        return self.window_at(now)

    def slept(self, uint64_t nanoseconds, uint64_t hits):
        """Learn from a sleep, after which there was something to do."""
        self.learn(nanoseconds, hits)

    def look(self, uint64_t now, uint64_t taken):
        """Look at who else wants the CPUs: this one has been taken away so often by now."""
        self.judge(now, taken)

    cdef uint64_t window_at(self, uint64_t now) noexcept nogil:
        cdef rusage usage
        if self.window == 0:
            return 0
        if now - self.checked >= CHECK:
            getrusage(RUSAGE_SELF, &usage)
            self.judge(now, usage.ru_nivcsw)
        self.looks = self.allowed
        return self.window if self.allowed else 0

    cdef void learn(self, uint64_t nanoseconds, uint64_t hits) noexcept nogil:
        if self.fixed:
            return
        if hits != self.hits:
            self.hits = hits
            self.vain = 0
            self.skips = LEAST_SKIPPED
        elif self.looks:
            self.vain += 1
        self.looks = False
        if self.vain >= VAIN:
            self.vain = 0
            self.window = 0
            self.skipped = self.skips
            self.skips = min(<uint64_t>MOST_SKIPPED, 2 * self.skips)
        elif self.skipped:
            self.skipped -= 1
        elif SAME < nanoseconds <= LONGEST and nanoseconds + self.window <= LONGEST:
            self.window = min(<uint64_t>LONGEST, max(<uint64_t>FIRST, 2 * self.window))
        elif self.window:
            self.window = self.window // 4 if self.window // 4 >= FIRST else 0

    cdef void judge(self, uint64_t now, uint64_t taken) noexcept nogil:
        cdef uint64_t awake = 1 if self.counters is None else self.counters.awake()
        if now - self.checked < 2 * CHECK and taken - self.taken > MOST:
            self.refrain_until = now + REFRAIN
        self.checked = now
        self.taken = taken
        self.allowed = now >= self.refrain_until and awake <= self.cpus
