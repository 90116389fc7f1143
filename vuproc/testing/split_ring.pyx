# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Driver side of a split virtqueue (virtio 1.3, section 2.7): see `DriverRing`.

The other half of the protocol in `vuproc.shm.split`.
"""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from vuproc.shm.atomics cimport (
    vu_fence_full,
    vu_load_acquire16,
    vu_load_relaxed16,
    vu_load_relaxed32,
    vu_store_relaxed16,
    vu_store_release16,
)
from vuproc.testing.ring cimport (
    DESC_INDIRECT, DESC_NEXT, MAX_SIZE, DriverRing, Segment
)

from vuproc.testing.errors import RingFull


cdef enum:
    NO_END = 0xffff                # end of the free list; never a valid index as size <= 32768
    NO_NOTIFY = 1                  # used.flags: the device wants no kicks
    NO_INTERRUPT = 1               # avail.flags: the driver wants no calls


def split_layout(size: int) -> tuple[int, int, int, int]:
    """Byte offsets of desc, avail and used from the ring's start, and the ring's length in bytes.

    Alignment as virtio asks (16, 2, 4); the two event words are part of the length.
    """
    avail = 16 * size
    used = (avail + 6 + 2 * size + 63) & ~63
    return 0, avail, used, used + 6 + 8 * size


cdef inline void write_desc(
    SplitDesc *desc, const Segment *segment, uint16_t more, uint16_t following
) noexcept nogil:
    """One descriptor of a chain. more: DESC_NEXT and the number of the next one, or 0 and 0."""
    desc.addr = segment.addr
    desc.len = segment.len
    desc.flags = <uint16_t>segment.flags | more
    desc.next = following


@cython.final
cdef class SplitDriverRing(DriverRing):
    """The driver's view of a split ring in `memory` at the byte offsets `desc`, `avail`, `used`.

    memory: a writable, contiguous buffer. base: where both sides start, mod 65536 (what the
    front-end sends in SET_VRING_BASE). event_idx: EVENT_IDX (feature bit 29) was acked.
    Raises ValueError for a size that is no power of two up to 32768, or areas outside the buffer.
    """

    def __cinit__(self, object memory, unsigned int size, *, size_t desc, size_t avail, size_t used,
                  unsigned int base=0, bint event_idx=False):
        cdef char *start
        cdef unsigned int i
        if size == 0 or size > MAX_SIZE or size & (size - 1):
            raise ValueError(f"ring size {size} is not a power of two in 1..{MAX_SIZE}")
        if base > 0xffff:
            raise ValueError(f"base {base} is not a 16-bit index")
        areas = (desc, 16 * size, 16), (avail, 6 + 2 * size, 2), (used, 6 + 8 * size, 4)
        start = self._attach(memory, size, event_idx, areas)
        # SAFETY: the areas were just checked against the buffer, which self._memory exports.
        self._desc = <SplitDesc *>(start + desc)
        self._avail = <uint16_t *>(start + avail)
        self._used = start + used
        self._name = "head"
        self._next = <uint16_t *>calloc(size, sizeof(uint16_t))
        self._tail = <uint16_t *>calloc(size, sizeof(uint16_t))
        if self._next == NULL or self._tail == NULL:
            raise MemoryError
        for i in range(size):
            self._next[i] = <uint16_t>(i + 1 if i + 1 < size else NO_END)
        self._free_head = 0
        self._avail_shadow = self._avail_published = self._used_seen = <uint16_t>base

    def __dealloc__(self):
        free(self._next)
        free(self._tail)

    # The hot half, without the GIL.

    cdef int take(self, unsigned int count) noexcept nogil:
        """Take `count` descriptors off the free list as one chain; its head, -1 if too few."""
        cdef uint16_t head = self._free_head
        cdef uint16_t last = head
        cdef unsigned int i
        if count == 0 or count > self._free:
            return -1
        for i in range(count - 1):
            last = self._next[last]
        self._free_head = self._next[last]
        self._tail[head] = last
        self._count[head] = <uint16_t>count
        self._free -= count
        return head

    cdef void offer(self, uint16_t head) noexcept nogil:
        """Write the next avail entry; the device sees it after publish_entries()."""
        # SAFETY: the index is masked to the ring; the avail area was checked in __cinit__.
        vu_store_relaxed16(&self._avail[2 + (self._avail_shadow & (self.size - 1))], head)
        self._avail_shadow += 1

    cdef int put(self, const Segment *chain, unsigned int count) noexcept nogil:
        cdef int head = self.take(count)
        cdef uint16_t index, following
        cdef unsigned int i
        if head < 0:
            return -1
        index = <uint16_t>head
        for i in range(count - 1):
            following = self._next[index]
            # SAFETY: take() gives indices below size.
            write_desc(&self._desc[index], &chain[i], DESC_NEXT, following)
            index = following
        # SAFETY: as above.
        write_desc(&self._desc[index], &chain[count - 1], 0, 0)
        self.offer(<uint16_t>head)
        return head

    cdef int put_indirect(
        self, const Segment *chain, unsigned int count, char *table, uint64_t address
    ) noexcept nogil:
        cdef int head = self.take(1)
        cdef SplitDesc entry
        cdef unsigned int i
        if head < 0:
            return -1
        for i in range(count - 1):
            write_desc(&entry, &chain[i], DESC_NEXT, <uint16_t>(i + 1))
            # SAFETY: i < count and the table holds 16 * count bytes, wherever it begins.
            memcpy(table + 16 * i, &entry, 16)
        write_desc(&entry, &chain[count - 1], 0, 0)
        # SAFETY: as above.
        memcpy(table + 16 * (count - 1), &entry, 16)
        # SAFETY: take() gives indices below size.
        self._desc[head].addr = address
        self._desc[head].len = 16 * count
        self._desc[head].flags = DESC_INDIRECT
        self._desc[head].next = 0
        self.offer(<uint16_t>head)
        return head

    cdef bint publish_entries(self) noexcept nogil:
        cdef uint16_t old = self._avail_published
        cdef uint16_t new = self._avail_shadow
        cdef uint16_t event
        if old == new:
            return False
        # Release: pairs with the device's acquire load of avail.idx. Descriptors, entries first.
        vu_store_release16(&self._avail[1], new)
        self._avail_published = new
        # Full fence between our store of avail.idx and the load of avail_event / used.flags: pairs
        # with the device's fence between its store of those and its re-read of avail.idx. One of
        # the two sees the other.
        vu_fence_full()
        if self.event_idx:
            # SAFETY: avail_event is the last word of the used area's checked 6 + 8n bytes.
            event = vu_load_relaxed16(self._used + 4 + 8 * self.size)
            return <uint16_t>(new - event - 1) < <uint16_t>(new - old)
        return not (vu_load_relaxed16(self._used) & NO_NOTIFY)

    cdef int reap_one(self, uint32_t *name, uint32_t *length) noexcept nogil:
        cdef char *element
        cdef uint16_t head
        # Acquire: pairs with the device's release store of used.idx; element and data come after.
        if vu_load_acquire16(self._used + 2) == self._used_seen:
            return 0
        # SAFETY: the slot is masked to the ring; the used area was checked in __cinit__.
        element = self._used + 4 + 8 * (self._used_seen & (self.size - 1))
        name[0] = vu_load_relaxed32(element)
        length[0] = vu_load_relaxed32(element + 4)
        if name[0] >= self.size or self._count[name[0]] == 0:
            return -1
        head = <uint16_t>name[0]
        self._used_seen += 1
        self._free += self._count[head]
        self._count[head] = 0
        self._next[self._tail[head]] = self._free_head
        self._free_head = head
        return 1

    cdef bint used_waits(self) noexcept nogil:
        # Acquire: as in reap_one().
        return vu_load_acquire16(self._used + 2) != self._used_seen

    cdef bint arm_calls(self) noexcept nogil:
        if self.event_idx:
            vu_store_relaxed16(&self._avail[2 + self.size], self._used_seen)
        else:
            vu_store_relaxed16(self._avail, 0)
        # Full fence: pairs with the device's fence between its store of used.idx and its load of
        # used_event or avail.flags. Either it sees our wish and calls, or we see its element here.
        vu_fence_full()
        return self.used_waits()

    cdef void disarm_calls(self) noexcept nogil:
        if self.event_idx:
            # 65535 elements ahead: as far as a 16-bit index reaches.
            vu_store_relaxed16(&self._avail[2 + self.size], <uint16_t>(self._used_seen - 1))
        else:
            vu_store_relaxed16(self._avail, NO_INTERRUPT)

    cdef uint32_t base_now(self) noexcept nogil:
        return self._used_seen

    cdef void begin_here(self) noexcept nogil:
        vu_store_release16(&self._avail[1], self._avail_published)
        vu_store_release16(self._used + 2, self._used_seen)

    # What a hostile driver does.

    def take_descriptors(self, count: int) -> int:
        """Take `count` descriptors as a chain, writing nothing; its head. Raises RingFull."""
        return self._take_or_raise(count)

    def offer_head(self, head: int) -> None:
        """Write the next avail entry, whatever it is; the device sees it after `publish`."""
        self.offer(<uint16_t>(<unsigned int>head & 0xffff))

    def link(self, index: int) -> int:
        """The descriptor that follows `index` in a chain from `take_descriptors`."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self._next[<unsigned int>index]

    def set_descriptor(
        self, index: int, address: int, length: int, flags: int = 0, next: int = 0
    ) -> None:
        """Store one descriptor as given, unchecked but for `index`."""
        cdef SplitDesc desc
        if not 0 <= index < self.size:
            raise IndexError(index)
        desc.addr = address
        desc.len = length
        desc.flags = flags
        desc.next = next
        # SAFETY: index was checked against size.
        memcpy(&self._desc[<unsigned int>index], &desc, 16)

    @property
    def avail_index(self) -> int:
        """avail.idx as the device sees it; assigning stores any value, where `publish` goes on."""
        return vu_load_relaxed16(&self._avail[1])

    @avail_index.setter
    def avail_index(self, unsigned int value):
        self._avail_shadow = self._avail_published = <uint16_t>value
        vu_store_release16(&self._avail[1], <uint16_t>value)

    @property
    def avail_flags(self) -> int:
        """avail.flags: bit 0 = the driver wants no calls (without EVENT_IDX)."""
        return vu_load_relaxed16(self._avail)

    @avail_flags.setter
    def avail_flags(self, unsigned int value):
        vu_store_relaxed16(self._avail, <uint16_t>value)

    @property
    def used_event(self) -> int:
        """used_event: call when used.idx passes it (with EVENT_IDX)."""
        return vu_load_relaxed16(&self._avail[2 + self.size])

    @used_event.setter
    def used_event(self, unsigned int value):
        vu_store_relaxed16(&self._avail[2 + self.size], <uint16_t>value)

    @property
    def used_index(self) -> int:
        """used.idx, the device's word; assigning it is what no honest driver does."""
        return vu_load_acquire16(self._used + 2)

    @used_index.setter
    def used_index(self, unsigned int value):
        vu_store_release16(self._used + 2, <uint16_t>value)

    @property
    def used_flags(self) -> int:
        """used.flags, the device's word: bit 0 = the device wants no kicks (without EVENT_IDX)."""
        return vu_load_relaxed16(self._used)

    @used_flags.setter
    def used_flags(self, unsigned int value):
        vu_store_relaxed16(self._used, <uint16_t>value)

    @property
    def avail_event(self) -> int:
        """avail_event, the device's word: kick when avail.idx passes it (with EVENT_IDX)."""
        return vu_load_relaxed16(self._used + 4 + 8 * self.size)

    @avail_event.setter
    def avail_event(self, unsigned int value):
        vu_store_relaxed16(self._used + 4 + 8 * self.size, <uint16_t>value)

    def used_element(self, slot: int) -> tuple[int, int]:
        """The used element in `slot` (mod size) as (id, length)."""
        cdef char *element = self._used + 4 + 8 * (<unsigned int>slot & (self.size - 1))
        return vu_load_relaxed32(element), vu_load_relaxed32(element + 4)

    # Helpers.

    cdef int _take_or_raise(self, unsigned int count) except -1:
        cdef int head = self.take(count)
        if head < 0:
            raise RingFull(count, self._free)
        return head
