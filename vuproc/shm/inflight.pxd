"""C interface of a split ring's in-flight record: the layout, and each store with its place.

The stores have names, in the order in which one request makes them: F1 to F3 at the fetch, X1 to X3
round the device's code, C2, C4 and C5 of a batch of completions (C1 and C3 are the used ring's), G1
and G2 where the device gives a request back, U1 where the ring stops and takes a fetch back.
Whoever reads them comes after the death of the one who wrote, and finds a prefix of that order.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from vuproc.shm.atomics cimport vu_note8, vu_note16, vu_note64
from vuproc.shm.memory cimport Mapping


cdef enum:
    # Deaths inside the device's code after which a request is not run any more.
    POISON = 3


cdef struct Header:
    # QueueRegionSplit of the vhost-user specification, up to its entries.
    uint64_t features              # 0
    uint16_t version               # 0: not in use
    uint16_t desc_num              # entries
    uint16_t last_batch_head       # begins the list of what was completed last, newest first
    uint16_t used_idx              # the used index up to which the marks are cleared


cdef struct Entry:
    # DescStateSplit, by head descriptor. The specification leaves bytes 1 to 5 unused.
    uint8_t inflight               # 1 from the fetch until the used index covers it
    uint8_t attempts               # deaths inside the device's code, the present run included
    uint8_t stage                  # UNTOUCHED to FAIL of request.pxd; another value: BY_POLICY
    uint8_t spare
    uint16_t lead                  # of entry 0 only: base less used.idx when the record began
    uint16_t next                  # the one completed before it
    uint64_t counter               # order of the fetches


cdef class SplitRecord:
    cdef Mapping mapping
    cdef Header *header
    cdef Entry *entries
    cdef readonly Py_ssize_t queue_size
    # What `begin` and `recover` found.
    cdef uint64_t next_counter
    cdef uint16_t last_batch_head
    cdef uint16_t position         # next avail index

    cdef uint16_t load_version(self) noexcept nogil
    cdef int begin(self, uint16_t used_idx, object base, bint fresh) except -1
    cdef tuple recover(self, int queue, uint16_t used_idx, uint16_t avail_idx)
    cdef tuple take_over(self, Header *header, Entry *entries, uint16_t used_idx, uint16_t avail_idx)
    cdef void end(self) noexcept nogil


cdef inline void note_fetched(Entry *entry, uint64_t counter) noexcept nogil:
    vu_note64(&entry.counter, counter)  # F1
    vu_note8(&entry.attempts, 0)  # F2
    vu_note8(&entry.stage, 0)
    vu_note8(&entry.inflight, 1)  # F3


cdef inline void note_deaths(Entry *entry, uint8_t attempts) noexcept nogil:
    vu_note8(&entry.attempts, attempts)  # X1: one more; X3: as before, it was survived


cdef inline void note_own_stage(Entry *entry, uint8_t stage) noexcept nogil:
    vu_note8(&entry.stage, stage)  # X2; G1: none of the device's doings is left


cdef inline void note_returned(Entry *entry) noexcept nogil:
    note_own_stage(entry, 0)  # G1
    note_deaths(entry, 0)  # G2


cdef inline void note_linked(
    Header *header, Entry *entry, uint16_t head, uint16_t previous
) noexcept nogil:
    vu_note16(&entry.next, previous)  # C2
    vu_note16(&header.last_batch_head, head)


cdef inline void note_cleared(Entry *entry) noexcept nogil:
    vu_note8(&entry.inflight, 0)  # C4, U1


cdef inline void note_used(Header *header, uint16_t used_idx) noexcept nogil:
    vu_note16(&header.used_idx, used_idx)  # C5
