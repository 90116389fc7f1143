# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The device side of a split virtqueue (virtio 1.2, section 2.7)."""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from posix.uio cimport iovec

from vuproc.shm.ahead cimport AHEAD, FAR_AHEAD, prefetch_buffer
from vuproc.shm.atomics cimport (
    vu_fence_full,
    vu_load_acquire16,
    vu_load_relaxed16,
    vu_load_relaxed64,
    vu_prefetch,
    vu_store_relaxed16,
    vu_store_relaxed32,
    vu_store_release16,
)
from vuproc.shm.counters cimport QueueCounters
from vuproc.shm.fetching cimport BY_POLICY, FREE, TAKEN, near
from vuproc.shm.inflight cimport (
    SplitRecord,
    note_cleared,
    note_deaths,
    note_fetched,
    note_linked,
    note_own_stage,
    note_returned,
    note_used,
)
from vuproc.shm.iotlb cimport Iotlb
from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.request cimport Chain
from vuproc.shm.ring cimport MAX_SIZE, Ring
from vuproc.shm.split_walk cimport walk_table
from vuproc.shm.walk cimport DESC_INDIRECT, find_first

from vuproc.errors import MemoryFault, RingError

cdef enum:
    # avail.flags: the driver wants no calls (without EVENT_IDX).
    NO_INTERRUPT = 1
    # used.flags: the device wants no kicks (without EVENT_IDX).
    NO_NOTIFY = 1


cdef inline uint16_t slot_of(SplitRing ring, uint16_t ahead) noexcept nogil:
    # What the avail ring has so many entries on.
    return vu_load_relaxed16(
        ring.avail + 4 + 2 * <size_t>(<uint16_t>(ring.last_avail + ahead) & ring.mask)
    )


@cython.final
cdef class SplitRing(Ring):
    """The device side of a split virtqueue."""

    def __cinit__(
        self,
        int queue,
        object size,
        GuestMemory memory not None,
        uint64_t desc,
        uint64_t avail,
        uint64_t used,
        object base,
        *,
        uint64_t features,
        Py_ssize_t chain_limit,
        QueueCounters counters=None,
        SplitRecord record=None,
        bint fresh=False,
        Iotlb iotlb=None,
    ):
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise RingError(queue, 0, f"size {size} is no power of two up to {MAX_SIZE}")
        if record is not None and record.queue_size != size:
            raise ValueError(f"a record for {record.queue_size} entries and a ring of {size}")
        self.prepare(queue, size, chain_limit, counters, features, iotlb)
        self.mask = size - 1
        self.desc_addr = desc
        self.avail_addr = avail
        self.used_addr = used
        self.bind(memory)
        self.be_in(memory)
        # The one time that the used index is read (vhost-user, SET_VRING_ADDR).
        self.last_used = vu_load_relaxed16(self.used + 2)
        self.begin_at(self.last_used if base is None else <uint16_t>(base & 0xffff))
        if record is not None:
            self.take_up(record, base, fresh)
        self.seen_avail = <uint16_t>self.last_avail
        # A predecessor may have died with kicks refused, or as the device of other features.
        vu_store_relaxed16(self.used, 0)

    cdef int take_up(self, SplitRecord record, object base, bint fresh) except -1:
        if fresh or record.load_version() == 0:
            record.begin(self.last_used, base, fresh)
        else:
            # Acquire as in `look`: the chains are read on the strength of it.
            found = record.recover(
                self.queue, self.last_used, vu_load_acquire16(self.avail + 2)
            )
            self.begin_at(record.position)
            self.adopt(found, self.fetched_last(found))
            self.call_after_recovery = True
        self.begin_at(record.position)
        self.counter = record.next_counter
        self.last_batch_head = record.last_batch_head
        self.record = record
        self.log = record.header
        self.entries = record.entries
        return 0

    cdef Py_ssize_t fetched_last(self, tuple found):
        # How many of these are, in this order, the last entries of the avail ring. After the first
        # of them nothing was fetched that is completed by now, and `stop` may take them back.
        # Those entries are still there: a driver has no free slot before the used index passes one.
        # Should it have changed them nevertheless, what it is given later is what it put there.
        cdef uint16_t slot = <uint16_t>self.last_avail
        cdef Py_ssize_t count = 0
        for recovered in reversed(found):
            slot -= 1
            # SAFETY: the slot is masked to the ring, whose extent `bind` checked.
            if recovered.head != vu_load_relaxed16(
                self.avail + 4 + 2 * <size_t>(slot & self.mask)
            ):
                break
            count += 1
        return count

    cdef int bind(self, GuestMemory memory) except -1:
        cdef uint64_t entries = self.size
        cdef unsigned char *desc = memory.user(self.desc_addr, 16 * entries)
        cdef unsigned char *avail = memory.user(self.avail_addr, 6 + 2 * entries)
        cdef unsigned char *used = memory.user(self.used_addr, 6 + 8 * entries)
        # Checked on both: a region may begin at an odd place of its file.
        if (self.desc_addr | <uintptr_t>desc) & 15:
            raise RingError(self.queue, self.place(), "descriptor table is not aligned to 16")
        if (self.avail_addr | <uintptr_t>avail) & 1:
            raise RingError(self.queue, self.place(), "avail ring is not aligned to 2")
        if (self.used_addr | <uintptr_t>used) & 3:
            raise RingError(self.queue, self.place(), "used ring is not aligned to 4")
        if desc == NULL:
            raise MemoryFault(self.desc_addr, 16 * entries, "descriptors not inside one region")
        if avail == NULL:
            raise MemoryFault(self.avail_addr, 6 + 2 * entries, "avail ring not inside one region")
        if used == NULL:
            raise MemoryFault(self.used_addr, 6 + 8 * entries, "used ring not inside one region")
        # SAFETY: each area, event words included, lies inside one mapping, which `memory` holds.
        self.desc = desc
        self.avail = avail
        self.used = used
        return 0

    cdef void unbind(self) noexcept:
        self.desc = self.avail = self.used = NULL
        # Whoever comes after us may have the record by now.
        self.log = NULL
        self.entries = NULL

    cdef uint16_t place(self) noexcept nogil:
        return <uint16_t>self.last_avail

    cdef uint32_t base(self) noexcept nogil:
        return <uint16_t>self.last_avail

    cdef bint available(self) noexcept nogil:
        # Acquire as in `look`, though nothing is read on the strength of it.
        return vu_load_acquire16(self.avail + 2) != <uint16_t>self.last_avail

    cdef uint16_t backlog(self) noexcept nogil:
        # Relaxed: nothing is read on the strength of it, and what it says is only believed as far
        # as the ring is long.
        cdef uint16_t idx = vu_load_relaxed16(self.avail + 2)
        return <uint16_t>min(<Py_ssize_t><uint16_t>(idx - self.last_avail), self.size)

    cdef bint has_waiting(self, uint32_t count) noexcept nogil:
        return self.backlog() >= count

    cdef int look(self) noexcept nogil:
        # Acquire: pairs with the driver's write barrier between ring[] and avail.idx; entries and
        # descriptors are read after it.
        cdef uint16_t idx = vu_load_acquire16(self.avail + 2)
        cdef uint16_t distance = <uint16_t>(idx - self.last_avail)
        if distance > self.size:
            return self.fault(b"avail index is further on than the ring is long")
        self.seen_avail = idx
        return distance != 0

    cdef int fetch(self, Chain *chain) noexcept nogil:
        cdef uint16_t head
        cdef int got
        if <uint16_t>self.last_avail == self.seen_avail:
            got = self.look()
            if got <= 0:
                return got
        # SAFETY: the slot is masked to the ring, whose extent `bind` checked. Read once.
        head = vu_load_relaxed16(self.avail + 4 + 2 * <size_t>(self.last_avail & self.mask))
        if head >= self.size:
            return self.fault(b"avail entry is no descriptor of the table")
        if self.marks[head]:
            return self.fault(b"descriptor head is in flight already")
        if self.walk(head, chain) < 0:
            return self.not_walked(head)
        chain.head = head
        self.mark_fetched(head)
        if self.followed:
            self.enter_followed(chain)
        return 1

    cdef void prefetch(self) noexcept nogil:
        self.look_ahead(False)

    cdef void prefetch_to_fill(self) noexcept nogil:
        self.look_ahead(True)

    cdef void look_ahead(self, bint to_fill) noexcept nogil:
        cdef uint16_t there = <uint16_t>(self.seen_avail - self.last_avail), head
        cdef const unsigned char *descriptor
        if there <= FAR_AHEAD:
            there = self.backlog()
            if there == 0:
                return
        # SAFETY: slots are masked to the ring; heads are compared with its size.
        head = slot_of(self, min(there - 1, <uint16_t>FAR_AHEAD))
        if head < self.size:
            vu_prefetch(self.desc + 16 * <size_t>head)
        head = slot_of(self, AHEAD if there > AHEAD else 0)
        if head < self.size:
            descriptor = self.desc + 16 * <size_t>head
            prefetch_buffer(
                near(self, vu_load_relaxed64(descriptor)),
                <uint32_t>vu_load_relaxed64(descriptor + 8),
                to_fill,
            )

    cdef bint coming(self, uint16_t after, iovec *first) noexcept nogil:
        cdef const unsigned char *descriptor
        cdef uint64_t rest
        cdef uint16_t head
        if <uint16_t>(self.seen_avail - self.last_avail) <= after and self.backlog() <= after:
            return False
        # SAFETY: as in `look_ahead`.
        head = slot_of(self, after)
        if head >= self.size:
            return False
        descriptor = self.desc + 16 * <size_t>head
        rest = vu_load_relaxed64(descriptor + 8)
        return find_first(
            self,
            vu_load_relaxed64(descriptor),
            <uint32_t>rest,
            (rest >> 32) & DESC_INDIRECT != 0,
            first,
        )

    cdef void mark_fetched(self, uint16_t head) noexcept nogil:
        # The record first: whoever comes after us must find what we are going to have.
        if self.entries != NULL:
            note_fetched(self.entries + head, self.counter)
            self.counter += 1
        self.marks[head] = TAKEN
        self.last_avail += 1
        self.flying += 1

    cdef int fetch_again(self, uint16_t head, Chain *chain) noexcept nogil:
        # A head that the record has: it lies inside the table, and is marked.
        if self.buffers != NULL:
            self.drop_buffers(head)
        if self.walk(head, chain) < 0:
            return -1
        chain.head = head
        return 1

    cdef void unfetch(self, uint16_t head) noexcept nogil:
        # U1. The stop's order and its proof are in fetching.pyx.
        if self.entries != NULL:
            note_cleared(self.entries + head)
        self.marks[head] = FREE
        self.last_avail -= 1
        # What was seen of the avail ring may be behind it now.
        self.seen_avail = <uint16_t>self.last_avail

    cdef void note_begin(self, uint16_t head, uint8_t attempts) noexcept nogil:
        if self.entries != NULL:
            note_deaths(self.entries + head, attempts)
            if self.policy is not None:
                note_own_stage(self.entries + head, BY_POLICY)

    cdef void note_attempts(self, uint16_t head, uint8_t attempts) noexcept nogil:
        if self.entries != NULL:
            note_deaths(self.entries + head, attempts)

    cdef void note_stage(self, uint16_t head, uint8_t stage) noexcept nogil:
        if self.entries != NULL:
            note_own_stage(self.entries + head, stage)

    cdef void note_given_back(self, uint16_t head) noexcept nogil:
        if self.entries != NULL:
            note_returned(self.entries + head)

    cdef void note_blamed(self, uint16_t head) noexcept nogil:
        if self.entries != NULL:
            note_deaths(self.entries + head, self.entries[head].attempts + 1)

    cdef void note_end(self) noexcept nogil:
        if self.record is not None:
            self.record.end()

    cdef int walk(self, uint16_t head, Chain *chain) noexcept nogil:
        return walk_table(self, self.desc, head, chain)

    cdef bint commit(self) noexcept nogil:
        # Publish the batch: the store order of the in-flight record (C1 to C5), with nothing
        # fetched between C3 and C5. Answers whether the driver wants to be notified.
        cdef uint16_t old = self.last_used
        cdef uint16_t event, head
        cdef unsigned char *element
        cdef bint first
        cdef int i
        # C1. SAFETY: slots are masked to the ring.
        for i in range(self.batched):
            element = self.used + 4 + 8 * <size_t>(<uint16_t>(old + i) & self.mask)
            vu_store_relaxed32(element, self.batch[i].head)
            vu_store_relaxed32(element + 4, self.batch[i].length)
        # C2, the list of the batch.
        if self.entries != NULL:
            for i in range(self.batched):
                head = self.batch[i].head
                note_linked(self.log, self.entries + head, head, self.last_batch_head)
                self.last_batch_head = head
        self.last_used = <uint16_t>(old + self.batched)
        # C3. Release: pairs with the driver's read barrier after it has loaded used.idx; used
        # elements and the buffers' bytes are visible before it.
        vu_store_release16(self.used + 2, self.last_used)
        # C4.
        for i in range(self.batched):
            head = self.batch[i].head
            self.marks[head] = FREE
            if self.entries != NULL:
                note_cleared(self.entries + head)
        # C5.
        if self.entries != NULL:
            note_used(self.log, self.last_used)
        if self.buffers != NULL:
            self.mark_published(old)
        self.batched = 0
        # Full fence: pairs with the driver's between its store of used_event (or flags) and its
        # next load of used.idx. One of the two sees the other.
        vu_fence_full()
        if not self.event_idx:
            return not vu_load_relaxed16(self.avail) & NO_INTERRUPT
        event = vu_load_relaxed16(self.avail + 4 + 2 * <size_t>self.size)
        first = not self.evaluated
        self.evaluated = True
        # 2.7.10: notify if used_event is among the entries just published. At first it is not known
        # what was published and not compared before.
        return first or <uint16_t>(self.last_used - event - 1) < <uint16_t>(self.last_used - old)

    cdef void mark_published(self, uint16_t old) noexcept nogil:
        # After the stores, and before the driver is called. A death in between leaves it to the
        # successor, which marks the whole used ring.
        cdef size_t first = old & self.mask
        cdef size_t count = min(<size_t>self.batched, <size_t>self.size - first)
        self.mark_used(2, 2)
        self.mark_used(4 + 8 * first, 8 * count)
        self.mark_used(4, 8 * (self.batched - count))

    cdef uint64_t used_bytes(self) noexcept nogil:
        return 6 + 8 * <uint64_t>self.size

    cdef int ask_kicks(self) noexcept nogil:
        if self.event_idx:
            vu_store_relaxed16(
                self.used + 4 + 8 * <size_t>self.size, <uint16_t>self.last_avail
            )
        elif self.shown_flags:
            self.shown_flags = 0
            vu_store_relaxed16(self.used, 0)
        # Full fence: pairs with the driver's between its store of avail.idx and its load of
        # avail_event (or used.flags). Either it sees our wish, or we see its entry here.
        vu_fence_full()
        return self.look()

    cdef void refuse_kicks(self) noexcept nogil:
        # With EVENT_IDX an avail_event that was passed asks for no kick; flags stay 0 (2.7.7.2).
        if not self.event_idx and not self.shown_flags:
            self.shown_flags = NO_NOTIFY
            vu_store_relaxed16(self.used, NO_NOTIFY)
