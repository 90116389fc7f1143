# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The in-flight record of a split ring: what a worker leaves to the one that comes after it."""

from typing import NamedTuple

cimport cython
from libc.stdint cimport uint16_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from vuproc.shm.atomics cimport (
    vu_compiler_barrier,
    vu_load_relaxed8,
    vu_load_relaxed16,
    vu_note8,
    vu_note16,
    vu_note64,
)
from vuproc.shm.memory cimport Mapping

from vuproc.errors import MemoryFault, RingError

POISON_ATTEMPTS = POISON

cdef enum:
    # virtio 1.2, 2.7: the largest queue.
    MAX_SIZE = 32768
    # libvhost-user's and DPDK's distance between records is a multiple of it, and so is ours:
    # a region may move from one back-end to another.
    ALIGNMENT = 64
    VERSION = 1


class Recovered(NamedTuple):
    """A request which an earlier worker had fetched and not completed."""

    head: int
    attempts: int
    stage: int


def record_bytes(Py_ssize_t queue_size):
    """Bytes of the record of a queue, up to a multiple of 64: records' distance, too."""
    cdef Py_ssize_t size = sizeof(Header) + _checked(queue_size) * sizeof(Entry)
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


cdef Py_ssize_t _checked(Py_ssize_t queue_size) except -1:
    if not 0 < queue_size <= MAX_SIZE:
        raise ValueError(f"queue size {queue_size} is not in 1..{MAX_SIZE}")
    return queue_size


@cython.final
cdef class SplitRecord:
    """One queue's in-flight record, mapped. Nothing in it is trusted."""

    def __cinit__(self, int fd, object offset, Py_ssize_t queue_size):
        cdef Py_ssize_t size = sizeof(Header) + _checked(queue_size) * sizeof(Entry)
        self.mapping = Mapping(fd, size, offset)
        if <uintptr_t>self.mapping.data % sizeof(uint64_t):
            raise MemoryFault(offset, size, "in-flight record is not aligned to 8")
        # SAFETY: `size` bytes are mapped as long as `mapping` lives, and aligned to their widest.
        self.header = <Header *>self.mapping.data
        self.entries = <Entry *>(self.mapping.data + sizeof(Header))
        self.queue_size = queue_size

    @property
    def version(self):
        """0: nothing to recover; 1: in use."""
        return self.load_version()

    cdef uint16_t load_version(self) noexcept nogil:
        return vu_load_relaxed16(&self.header.version)

    cdef int begin(self, uint16_t used_idx, object base, bint fresh) except -1:
        # Version 0 until all else is there. Two workers may die in here one after the other.
        cdef uint16_t lead
        cdef Py_ssize_t i
        if fresh:
            vu_note16(&self.header.version, 0)
        if base is not None:
            lead = <uint16_t>(<uint16_t>(base & 0xffff) - used_idx)
        elif not fresh and vu_load_relaxed16(&self.header.desc_num) == self.queue_size:
            # Where the last ring stopped.
            lead = vu_load_relaxed16(&self.entries[0].lead)
        else:
            lead = 0
        vu_note64(&self.header.features, 0)
        vu_note16(&self.header.desc_num, <uint16_t>self.queue_size)
        vu_note16(&self.header.last_batch_head, 0)
        # The live one: it need not be 0 (a guest that was migrated, a back-end before us).
        vu_note16(&self.header.used_idx, used_idx)
        # Not 0 where requests were lost before us: the used index is behind for good.
        vu_note16(&self.entries[0].lead, lead)
        for i in range(self.queue_size):
            if vu_load_relaxed8(&self.entries[i].inflight):
                vu_note8(&self.entries[i].inflight, 0)
        vu_note16(&self.header.version, VERSION)
        self.next_counter = 0
        self.last_batch_head = 0
        self.position = <uint16_t>(used_idx + lead)
        return 0

    cdef tuple recover(self, int queue, uint16_t used_idx, uint16_t avail_idx):
        # Each word is read once, and nothing is stored before all of it was found in order.
        cdef Py_ssize_t size = self.queue_size
        cdef Header header
        cdef Entry *entries = <Entry *>malloc(size * sizeof(Entry))
        if entries == NULL:
            raise MemoryError
        try:
            memcpy(&header, self.header, sizeof(Header))
            memcpy(entries, self.entries, size * sizeof(Entry))
            # Or the compiler might read the shared one again instead of the copy.
            vu_compiler_barrier()
            try:
                return self.take_over(&header, entries, used_idx, avail_idx)
            except ValueError as error:
                raise RingError(queue, used_idx, f"in-flight record {error}") from None
        finally:
            free(entries)

    cdef tuple take_over(
        self, Header *header, Entry *entries, uint16_t used_idx, uint16_t avail_idx
    ):
        cdef Py_ssize_t size = self.queue_size, i
        cdef uint16_t behind, head
        cdef list live = []
        if header.version != VERSION:
            raise ValueError(f"has version {header.version}, which is not known here")
        if header.features:
            raise ValueError(f"has features {header.features:#x}, which are not known here")
        if header.desc_num != size:
            raise ValueError(f"is for {header.desc_num} descriptors and the ring has {size}")
        # Completed, and the marks not cleared any more: what is before C5 and behind C3.
        behind = <uint16_t>(used_idx - header.used_idx)
        if behind > size:
            raise ValueError(
                f"stands at used index {header.used_idx} and the ring at {used_idx}, "
                "more than its length away"
            )
        head = header.last_batch_head
        for i in range(behind):
            if head >= size:
                raise ValueError(f"links to descriptor {head}, which is outside the table")
            entries[head].inflight = 0
            head = entries[head].next
        for i in range(size):
            if entries[i].inflight > 1:
                raise ValueError(f"has a mark of {entries[i].inflight} at descriptor {i}")
            if entries[i].inflight:
                live.append((entries[i].counter, i, entries[i].attempts, entries[i].stage))
        self.position = <uint16_t>(used_idx + entries[0].lead + len(live))
        if <uint16_t>(avail_idx - self.position) > size:
            raise ValueError(
                f"has {len(live)} requests in flight behind used index {used_idx}, "
                f"which the avail index {avail_idx} does not cover"
            )
        live.sort()
        # The same walk again. To die in here is to leave less to do.
        head = header.last_batch_head
        for i in range(behind):
            # SAFETY: head < size, as the first walk found over the same copy.
            vu_note8(&self.entries[head].inflight, 0)
            head = entries[head].next
        vu_note16(&self.header.used_idx, used_idx)
        self.last_batch_head = header.last_batch_head
        self.next_counter = 0
        if live:
            self.next_counter = <uint64_t>live[len(live) - 1][0] + 1
        return tuple([Recovered(head, attempts, stage) for _, head, attempts, stage in live])

    cdef void end(self) noexcept nogil:
        # All is completed, and the driver has seen it: the next ring begins at its own base.
        vu_note16(&self.header.version, 0)
