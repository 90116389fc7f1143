# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The sleep of a worker that serves one ring, and what a kick ends it for."""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.time cimport timespec
from posix.unistd cimport read

from vuproc.shm.clock cimport clock_ns
from vuproc.shm.counters cimport QueueCounters, add
from vuproc.shm.native_serving cimport NativeServing
from vuproc.shm.spin cimport Spin

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN
    int epoll_wait(int epoll, epoll_event *events, int room, int milliseconds)

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *mask)

cdef enum:
    FOR_EVER = -1
    NS = 1000000000
    MS = 1000000
    # A timer that is further off than this is waited for in milliseconds, up to here; and the most
    # of them at a time.
    LONG_NS = 100000000
    MOST_MS = 1000000000
    # A timer may be for a time that nobody lives to see.
    FAR_S = 1000000000
    # So long the loop in Python may be left out, with kicks all the time.
    MOST_NS = 100000000


cdef inline uint64_t deadline_of(object due) except? 0:
    # The time at which so many seconds are over; 0: never.
    return 0 if due is None else clock_ns() + <uint64_t>(min(<double>due, <double>FAR_S) * NS)


cdef int await_event(
    int epoll, epoll_event *event, uint64_t now, uint64_t deadline
) noexcept nogil:
    # At most one of those that are there.
    cdef pollfd look
    cdef timespec left
    cdef int found
    if not deadline:
        return epoll_wait(epoll, event, 1, FOR_EVER)
    # epoll_wait(2) counts in milliseconds, and a timer is to be exact. While one is far off, it is
    # one system call in place of two.
    while deadline > now + LONG_NS:
        found = epoll_wait(
            epoll, event, 1, <int>min((deadline - now - LONG_NS) // MS + 1, <uint64_t>MOST_MS)
        )
        if found:
            return found
        now = clock_ns()
    look.fd = epoll
    look.events = POLLIN
    look.revents = 0
    left.tv_sec = <int64_t>((deadline - now) // NS) if deadline > now else 0
    left.tv_nsec = <int64_t>((deadline - now) % NS) if deadline > now else 0
    if ppoll(&look, 1, &left, NULL) <= 0:
        return 0
    return epoll_wait(epoll, event, 1, 0)


@cython.final
cdef class KickWait:
    """Sleeps in a poll set."""

    cdef int epoll                 # borrowed

    def __init__(self, int epoll):
        self.epoll = epoll

    def wait(
        self, QueueCounters counters, int kick, Spin spin not None, object due, uint64_t hits
    ):
        """Sleep once; whether kicks have come."""
        cdef uint64_t deadline = deadline_of(due)
        cdef bint kicked
        with nogil:
            kicked = self.sleep(counters, kick, spin, deadline, hits)
        return kicked

    def serve(
        self,
        NativeServing ring not None,
        int kick,
        Spin spin not None,
        object due,
        int budget,
        uint64_t slice_ns,
    ):
        """Sleep and serve until there is something else; whether the ring has more to do."""
        cdef uint64_t deadline = deadline_of(due), end = clock_ns() + MOST_NS, failures
        cdef uint64_t left = ring.left
        cdef int got = 0
        if not ring.is_quiet():
            raise RuntimeError("the ring has something to do that takes Python")
        failures = ring.device.failures
        if deadline:
            # A driver that kicks all the time is not to keep a timer waiting.
            end = min(end, deadline)
        with nogil:
            while got == 0 and self.sleep(ring.counters, kick, spin, deadline, ring.hits):
                got = ring.serve_quietly(budget, slice_ns, spin)
                if ring.left != left or ring.device.failures != failures or clock_ns() >= end:
                    # What Python has served may have set a timer, or ended the ring. Failures are
                    # worth a line in the log, and the loop has more to look at.
                    break
        ring.raise_what_came()
        if got < 0:
            raise ring.break_ring()
        return got > 0

    cdef bint sleep(
        self, QueueCounters counters, int kick, Spin spin, uint64_t deadline, uint64_t hits
    ) noexcept nogil:
        cdef epoll_event event
        cdef uint64_t began, ended, kicks
        cdef int found
        if counters is not None:
            counters.be_awake(False)
        began = clock_ns()
        found = await_event(self.epoll, &event, began, deadline)
        ended = clock_ns()
        if counters is not None:
            counters.be_awake(True)
        spin.learn(ended - began, hits)
        # One more that is there too is found before the next sleep: the set hands out each in turn.
        if found != 1 or event.data.fd != kick or event.events != EPOLLIN:
            return False
        # An eventfd's counter; a pipe or a socket carries as many bytes a kick.
        if read(kick, &kicks, sizeof(kicks)) <= 0:
            # Somebody else was quicker, or it is at its end.
            return False
        if counters is not None:
            add(&counters.block.kicks, 1)
        return True
