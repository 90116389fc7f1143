# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Driver side of a virtqueue of either layout: what a test and the load generator need of it.

Written from the driver's part of the virtio specification (1.3, sections 2.7 and 2.8), as are the
layouts in `split_ring` and `packed_ring`, and sharing no code with the device side: a mistake in
one does not hide in the other.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abort, calloc, free

from vuproc.testing.errors import BackendFault, RingFull


cdef class DriverRing:
    """The driver's view of a ring; `SplitDriverRing` and `PackedDriverRing` are the two there are.

    A request in flight is known by a number below `size`: the head of its chain in a split ring,
    the buffer id in a packed one. Not thread-safe: one ring, one thread, as in a driver.
    """

    def __cinit__(self):
        if type(self) is DriverRing:
            raise TypeError("a driver ring has a layout: SplitDriverRing or PackedDriverRing")

    def __dealloc__(self):
        free(self._count)

    cdef char *_attach(self, object memory, unsigned int size, bint event_idx, areas) except NULL:
        """Keep `memory` exported and check the ring's areas: (offset, bytes, alignment) in it.

        Returns where it begins. ValueError for areas outside of it.
        """
        cdef Py_buffer view
        cdef size_t length, offset, need, align
        cdef char *start
        # The memoryview stands for the export: the buffer cannot go away or be resized.
        self._memory = memoryview(memory)
        PyObject_GetBuffer(self._memory, &view, PyBUF_WRITABLE)
        start = <char *>view.buf
        length = <size_t>view.len
        PyBuffer_Release(&view)
        for offset, need, align in areas:
            if offset % align or offset > length or need > length - offset:
                raise ValueError(
                    f"ring area at {offset:#x}, {need} bytes, does not fit its memory or alignment"
                )
        self._count = <uint16_t *>calloc(size, sizeof(uint16_t))
        if self._count == NULL:
            raise MemoryError
        self.size = self._free = size
        self.event_idx = event_idx
        return start

    # The hot half, without the GIL. A layout that forgets one of these is no layout.

    cdef int put(self, const Segment *chain, unsigned int count) noexcept nogil:
        """Offer one chain; what it is called by, -1 if there are too few free descriptors.

        The device sees it after publish_entries().
        """
        abort()

    cdef int put_indirect(
        self, const Segment *chain, unsigned int count, char *table, uint64_t address
    ) noexcept nogil:
        """As put(), with the chain in a table of 16 * count bytes, whose guest address is `address`.

        It takes one descriptor.
        """
        abort()

    cdef bint publish_entries(self) noexcept nogil:
        """Let the device see what was offered; True if it wants a kick for it."""
        abort()

    cdef int reap_one(self, uint32_t *name, uint32_t *length) noexcept nogil:
        """Take back one request: 1 = taken, 0 = none there, -1 = it is none that is in flight."""
        abort()

    cdef bint used_waits(self) noexcept nogil:
        """Whether there is something to take back."""
        abort()

    cdef bint arm_calls(self) noexcept nogil:
        """Ask for a call at the next completion; True if one is there already: do not sleep."""
        abort()

    cdef void disarm_calls(self) noexcept nogil:
        """Ask for no calls. A hint only: the device may have decided already."""
        abort()

    cdef uint32_t base_now(self) noexcept nogil:
        """See `position`."""
        abort()

    cdef void begin_here(self) noexcept nogil:
        """See `begin`."""
        abort()

    # What a driver does.

    def begin(self) -> None:
        """Write into the memory what a ring holds that has come as far as where this one starts.

        Zeros, as in new memory, are what a ring holds that starts at the very beginning.
        """
        self.begin_here()

    def add(self, segments, indirect=None) -> int:
        """Offer one chain of (guest address, length, device may write) segments; its head or id.

        indirect: (guest address, writable buffer) of a table for the chain, which then takes one
        descriptor. The device sees it after `publish`. Raises RingFull, and ValueError for no
        segments or a table that is too small.
        """
        cdef list given = list(segments)
        cdef unsigned int count = <unsigned int>len(given)
        cdef unsigned int i
        cdef int name
        cdef Segment *chain
        cdef Py_buffer table
        if count == 0:
            raise ValueError("a chain needs at least one segment")
        chain = <Segment *>calloc(count, sizeof(Segment))
        if chain == NULL:
            raise MemoryError
        try:
            for i in range(count):
                chain[i].addr, chain[i].len, writable = given[i]
                chain[i].flags = DESC_WRITE if writable else 0
            if indirect is None:
                name = self.put(chain, count)
            else:
                address, buffer = indirect
                PyObject_GetBuffer(buffer, &table, PyBUF_WRITABLE)
                try:
                    if table.len < <Py_ssize_t>(16 * count):
                        raise ValueError(
                            f"indirect table of {table.len} bytes, {16 * count} needed"
                        )
                    name = self.put_indirect(chain, count, <char *>table.buf, address)
                finally:
                    PyBuffer_Release(&table)
        finally:
            free(chain)
        if name < 0:
            raise RingFull(count if indirect is None else 1, self._free)
        return name

    def publish(self) -> bool:
        """Let the device see every chain offered so far; True if it wants a kick."""
        return self.publish_entries()

    def reap(self, limit: int = MAX_SIZE) -> list[tuple[int, int]]:
        """Take back up to `limit` requests, oldest first, as (head or id, bytes written).

        Raises BackendFault if the device returns one that is not in flight.
        """
        cdef uint32_t name = 0, length = 0
        cdef int got
        cdef list done = []
        while len(done) < limit:
            got = self.reap_one(&name, &length)
            if got == 0:
                break
            if got < 0:
                raise BackendFault(self.fault(name))
            done.append((name, length))
        return done

    def arm(self) -> bool:
        """Ask for a call at the next completion; True if one is there already (do not sleep)."""
        return self.arm_calls()

    def disarm(self) -> None:
        """Ask for no calls."""
        self.disarm_calls()

    @property
    def free(self) -> int:
        """Descriptors not in a chain."""
        return self._free

    @property
    def pending(self) -> bool:
        """Whether a completion waits to be taken back."""
        return self.used_waits()

    @property
    def position(self) -> int:
        """How far requests were taken back, as SET_VRING_BASE has it: with none in flight, the base.
        """
        return self.base_now()

    def fault(self, name: int) -> str:
        """What a device did wrong that returned `name`, in words."""
        return f"used element names {self._name} {name}, which is not in flight"
