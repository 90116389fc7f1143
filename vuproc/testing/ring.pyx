# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Driver side of a split virtqueue, so that a test can be the guest without a guest.

The other half of the protocol in `vuproc.shm.split`, written from the driver's part of the
virtio specification (1.2, section 2.7) and sharing no code with it: a mistake in one does not hide
in the other.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
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

from vuproc.testing.errors import BackendFault, RingFull


cdef enum:
    NO_END = 0xffff                # end of the free list; never a valid index as size <= 32768
    MAX_SIZE = 32768               # virtio 1.2, 2.7: largest queue size
    NO_NOTIFY = 1                  # used.flags: the device wants no kicks
    NO_INTERRUPT = 1               # avail.flags: the driver wants no calls


def ring_layout(size: int) -> tuple[int, int, int, int]:
    """Byte offsets of desc, avail and used from the ring's start, and the ring's length in bytes.

    Alignment as virtio 1.2, 2.7 asks (16, 2, 4); the two event words are part of the length.
    """
    avail = 16 * size
    used = (avail + 6 + 2 * size + 63) & ~63
    return 0, avail, used, used + 6 + 8 * size


cdef class DriverRing:
    """The driver's view of a ring in `memory` at the byte offsets `desc`, `avail`, `used`.

    memory: a writable, contiguous buffer. base: where both sides start, mod 65536 (what the
    front-end sends in SET_VRING_BASE). event_idx: EVENT_IDX (feature bit 29) was acked.
    Raises ValueError for a size that is no power of two up to 32768, or areas outside the buffer.
    Not thread-safe: one ring, one thread, as in a driver.
    """

    def __cinit__(self, object memory, unsigned int size, *, size_t desc, size_t avail, size_t used,
                  unsigned int base=0, bint event_idx=False):
        cdef Py_buffer view
        cdef size_t length
        cdef char *start
        cdef unsigned int i
        if size == 0 or size > MAX_SIZE or size & (size - 1):
            raise ValueError(f"ring size {size} is not a power of two in 1..{MAX_SIZE}")
        if base > 0xffff:
            raise ValueError(f"base {base} is not a 16-bit index")
        # The memoryview stands for the export: the buffer cannot go away or be resized.
        self._memory = memoryview(memory)
        PyObject_GetBuffer(self._memory, &view, PyBUF_WRITABLE)
        start = <char *>view.buf
        length = <size_t>view.len
        PyBuffer_Release(&view)
        for offset, need, align in (
            (desc, 16 * size, 16), (avail, 6 + 2 * size, 2), (used, 6 + 8 * size, 4)
        ):
            if offset % align or offset > length or need > length - offset:
                raise ValueError(
                    f"ring area at {offset:#x}, {need} bytes, does not fit its memory or alignment"
                )
        # SAFETY: the areas were just checked against the buffer, which self._memory exports.
        self._desc = <SplitDesc *>(start + desc)
        self._avail = <uint16_t *>(start + avail)
        self._used = start + used
        self.size = size
        self.event_idx = event_idx
        self._next = <uint16_t *>calloc(size, sizeof(uint16_t))
        self._tail = <uint16_t *>calloc(size, sizeof(uint16_t))
        self._count = <uint16_t *>calloc(size, sizeof(uint16_t))
        if self._next == NULL or self._tail == NULL or self._count == NULL:
            raise MemoryError
        for i in range(size):
            self._next[i] = <uint16_t>(i + 1 if i + 1 < size else NO_END)
        self._free_head = 0
        self._free = size
        self._avail_shadow = self._avail_published = self._used_seen = <uint16_t>base

    def __dealloc__(self):
        free(self._next)
        free(self._tail)
        free(self._count)

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

    cdef bint publish_entries(self) noexcept nogil:
        """Let the device see what was offered; True if it wants a kick for it."""
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

    cdef int reap_one(self, uint32_t *id, uint32_t *length) noexcept nogil:
        """Take back one used element: 1 = taken, 0 = none there, -1 = it is no chain of ours."""
        cdef char *element
        cdef uint16_t head
        # Acquire: pairs with the device's release store of used.idx; element and data come after.
        if vu_load_acquire16(self._used + 2) == self._used_seen:
            return 0
        # SAFETY: the slot is masked to the ring; the used area was checked in __cinit__.
        element = self._used + 4 + 8 * (self._used_seen & (self.size - 1))
        id[0] = vu_load_relaxed32(element)
        length[0] = vu_load_relaxed32(element + 4)
        if id[0] >= self.size or self._count[id[0]] == 0:
            return -1
        head = <uint16_t>id[0]
        self._used_seen += 1
        self._free += self._count[head]
        self._count[head] = 0
        self._next[self._tail[head]] = self._free_head
        self._free_head = head
        return 1

    cdef bint arm_calls(self) noexcept nogil:
        """Ask for a call at the next used element; True if one is there already: do not sleep."""
        if self.event_idx:
            vu_store_relaxed16(&self._avail[2 + self.size], self._used_seen)
        else:
            vu_store_relaxed16(self._avail, 0)
        # Full fence: pairs with the device's fence between its store of used.idx and its load of
        # used_event or avail.flags. Either it sees our wish and calls, or we see its element here.
        vu_fence_full()
        return vu_load_acquire16(self._used + 2) != self._used_seen

    cdef void disarm_calls(self) noexcept nogil:
        """Ask for no calls. A hint only: the device may have decided already."""
        if self.event_idx:
            # 65535 elements ahead: as far as a 16-bit index reaches.
            vu_store_relaxed16(&self._avail[2 + self.size], <uint16_t>(self._used_seen - 1))
        else:
            vu_store_relaxed16(self._avail, NO_INTERRUPT)

    # What a driver does.

    def add(self, segments, indirect=None) -> int:
        """Offer one chain of (guest address, length, device may write) segments; returns its head.

        indirect: (guest address, writable buffer) of a table for the chain, which then takes one
        descriptor. The device sees it after `publish`. Raises RingFull, and ValueError for no
        segments or a table that is too small.
        """
        cdef list chain = list(segments)
        cdef unsigned int count = <unsigned int>len(chain)
        cdef unsigned int i
        cdef int head
        cdef uint16_t index
        cdef SplitDesc desc
        cdef Py_buffer table
        if count == 0:
            raise ValueError("a chain needs at least one segment")
        if indirect is not None:
            table_address, table_buffer = indirect
            PyObject_GetBuffer(table_buffer, &table, PyBUF_WRITABLE)
            try:
                if table.len < <Py_ssize_t>(16 * count):
                    raise ValueError(f"indirect table of {table.len} bytes, {16 * count} needed")
                for i in range(count):
                    self._fill(&desc, chain[i], i + 1 < count, i + 1)
                    # SAFETY: i < count and the table holds 16 * count bytes.
                    memcpy(<char *>table.buf + 16 * i, &desc, 16)
            finally:
                PyBuffer_Release(&table)
            head = self._take_or_raise(1)
            desc.addr = table_address
            desc.len = 16 * count
            desc.flags = DESC_INDIRECT
            desc.next = 0
            # SAFETY: take() gives indices below size.
            memcpy(&self._desc[head], &desc, 16)
        else:
            head = self._take_or_raise(count)
            index = <uint16_t>head
            for i in range(count):
                self._fill(&desc, chain[i], i + 1 < count, self._next[index])
                # SAFETY: take() gives indices below size.
                memcpy(&self._desc[index], &desc, 16)
                index = self._next[index]
        self.offer(<uint16_t>head)
        return head

    def publish(self) -> bool:
        """Let the device see every chain offered so far; True if it wants a kick."""
        return self.publish_entries()

    def reap(self, limit: int = MAX_SIZE) -> list[tuple[int, int]]:
        """Take back up to `limit` used elements, oldest first, as (head, bytes written).

        Raises BackendFault if the device returns a head that is not in flight.
        """
        cdef uint32_t id = 0, length = 0
        cdef int got
        cdef list done = []
        while len(done) < limit:
            got = self.reap_one(&id, &length)
            if got == 0:
                break
            if got < 0:
                raise BackendFault(f"used element names head {id}, which is not in flight")
            done.append((id, length))
        return done

    def arm(self) -> bool:
        """Ask for a call at the next used element; True if one is there already (do not sleep)."""
        return self.arm_calls()

    def disarm(self) -> None:
        """Ask for no calls."""
        self.disarm_calls()

    @property
    def free(self) -> int:
        """Descriptors not in a chain."""
        return self._free

    @property
    def position(self) -> int:
        """Index, mod 65536, up to which chains were taken back: with none in flight, the base."""
        return self._used_seen

    @property
    def pending(self) -> bool:
        """Whether a used element waits to be taken back."""
        return vu_load_acquire16(self._used + 2) != self._used_seen

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

    cdef int _fill(self, SplitDesc *desc, object segment, bint more, uint16_t next) except -1:
        address, length, writable = segment
        desc.addr = address
        desc.len = length
        desc.flags = <uint16_t>((DESC_NEXT if more else 0) | (DESC_WRITE if writable else 0))
        desc.next = next if more else 0
        return 0
