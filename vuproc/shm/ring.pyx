# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""What split and packed rings share."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.uio cimport iovec

from vuproc.shm.atomics cimport vu_compiler_barrier, vu_load_relaxed64
from vuproc.shm.counters cimport QueueCounters, set_busy
from vuproc.shm.dirty cimport DirtyLog
from vuproc.shm.fetching cimport FREE
from vuproc.shm.iotlb cimport ACCESS_READ, ACCESS_WRITE, MISSED, Iotlb
from vuproc.shm.memory cimport NO_ROOM, NOT_MAPPED, GuestMemory
from vuproc.shm.native_pulling cimport NativePulling
from vuproc.shm.request cimport Chain
from vuproc.shm.trace cimport Trace, TraceEntry, TraceHeader
from vuproc.shm.xen cimport XenMapping, map_buffer

from vuproc.errors import MemoryFault
from vuproc.shm.native_serving import SLICE_NS

cdef enum:
    # Most descriptors of a chain that a caller may allow.
    MAX_CHAIN = 65536
    # Most regions that an indirect table may lie in.
    TABLE_PIECES = 16
    F_INDIRECT_DESC = 28
    F_EVENT_IDX = 29
    F_IN_ORDER = 35


cdef class Ring(NativePulling):
    """The device side of one virtqueue, whatever its layout."""

    def __dealloc__(self):
        free(self.copied)

    cdef int prepare(
        self, int queue, Py_ssize_t size, Py_ssize_t chain_limit, QueueCounters counters,
        uint64_t features, Iotlb iotlb,
    ) except -1:
        # All that comes before the ring's memory, with what of the features matters to both
        # layouts. The layout has checked the size.
        if not 0 <= chain_limit <= MAX_CHAIN:
            raise ValueError(f"chain limit {chain_limit} is not in 0..{MAX_CHAIN}")
        self.queue = queue
        self.iotlb = iotlb
        self.allocate(size, max(size, chain_limit))
        if iotlb is not None:
            self.keep_buffers()
        self.counters = counters
        if counters is not None:
            # A predecessor may have died inside a request.
            set_busy(counters.block, 0)
            if counters._traced:
                self.be_traced(counters)
        self.event_idx = (features >> F_EVENT_IDX) & 1
        self.indirect = (features >> F_INDIRECT_DESC) & 1
        if (features >> F_IN_ORDER) & 1:
            self.keep_order()
        if self.indirect:
            self.copied = <Descriptor *>malloc(self.limit * sizeof(Descriptor))
            if self.copied == NULL:
                raise MemoryError
        return 0

    cdef int be_traced(self, QueueCounters counters) except -1:
        # SAFETY: the counters have checked the room of their view, which they hold as we hold them.
        cdef TraceHeader *header = <TraceHeader *>counters._trace_view.buf
        self.trace = <Trace *>calloc(1, sizeof(Trace))
        if self.trace == NULL:
            raise MemoryError
        self.trace.orders = <uint64_t *>calloc(self.size, sizeof(uint64_t))
        if self.trace.orders == NULL:
            raise MemoryError
        self.trace.header = header
        self.trace.mask = counters._trace_view.len // sizeof(TraceEntry) - 2
        self.trace.worker = <uint32_t>vu_load_relaxed64(&header.worker)
        self.trace.entries = <TraceEntry *>(header + 1)
        self.watched = self.followed = True
        return 0

    cdef int fault(self, const char *cause) noexcept nogil:
        self.cause = cause
        return -1

    cdef int look_up(
        self, uint16_t head, uint64_t addr, uint64_t length, bint write, iovec *out, int room
    ) noexcept nogil:
        # The pieces of a buffer that is not where it would be without an IOMMU; none, and `missed`,
        # if a translation is not known: the walk goes on, to find out what else is not.
        cdef int made, i
        cdef uint64_t guest = 0
        if self.iotlb is None:
            if self.granted is None:
                return self.fault(b"buffer is not guest memory")
            if room < 1:
                return self.fault(b"buffers in too many pieces")
            with gil:
                return self.map_granted(head, addr, length, write, out)
        made = self.iotlb.find_pieces(
            self.memory, addr, length, ACCESS_WRITE if write else ACCESS_READ, out, room
        )
        if made == MISSED:
            self.missed = True
            return 0
        if made == NO_ROOM:
            return self.fault(b"buffers in too many pieces")
        if made < 0:
            return self.fault(b"buffer is not guest memory")
        for i in range(made):
            if write:
                guest = self.memory.guest_of(out[i].iov_base)
            self.note_buffer(head, guest, out[i].iov_len, addr, write)
            addr += out[i].iov_len
        return made

    cdef int copy_table(self, uint64_t addr, uint32_t length) noexcept nogil:
        # The whole table, once: it may lie in several regions and change while it is read.
        cdef iovec pieces[TABLE_PIECES]
        cdef unsigned char *to = <unsigned char *>self.copied
        cdef int count, i
        # 2.7.5.3.1, 2.8.7: a table holds whole descriptors.
        if length == 0 or length & 15:
            return self.fault(b"indirect table is no whole number of descriptors")
        if (length >> 4) > self.limit:
            return self.fault(b"indirect table is too long")
        count = self.direct.translate(addr, length, pieces, TABLE_PIECES)
        if count == NOT_MAPPED and self.iotlb is not None:
            count = self.iotlb.find_pieces(
                self.memory, addr, length, ACCESS_READ, pieces, TABLE_PIECES
            )
            if count == MISSED:
                self.missed = True
                return -1
        if count == NOT_MAPPED and self.granted is not None:
            with gil:
                return self.copy_granted(addr, length)
        if count == NO_ROOM:
            return self.fault(b"indirect table in too many pieces")
        if count < 0:
            return self.fault(b"indirect table is not guest memory")
        for i in range(count):
            # SAFETY: the pieces add up to `length` bytes, at most 16 * limit: the copy's room.
            memcpy(to, pieces[i].iov_base, pieces[i].iov_len)
            to += pieces[i].iov_len
        # Or the compiler might read guest memory again instead of the copy.
        vu_compiler_barrier()
        return 0

    # What is mapped for one request alone.

    cdef int map_granted(
        self, uint16_t head, uint64_t addr, uint64_t length, bint write, iovec *out
    ) noexcept:
        # The piece of a buffer; it stays mapped until `drop_buffers` of its head. The caller has
        # room for one.
        cdef XenMapping mapping
        try:
            mapping = map_buffer(self.memory, addr, length, write)
            if mapping is None:
                return self.fault(b"buffer is not guest memory")
            self.granted.setdefault(head, []).append(mapping)
        except (MemoryError, MemoryFault):
            return self.fault(b"the grants of a buffer cannot be mapped")
        out.iov_base = mapping.data
        out.iov_len = length
        return 1

    cdef int copy_granted(self, uint64_t addr, uint32_t length) noexcept:
        # An indirect table, which is mapped for just this.
        cdef XenMapping mapping
        try:
            mapping = map_buffer(self.memory, addr, length, False)
        except (MemoryError, MemoryFault):
            return self.fault(b"the grants of an indirect table cannot be mapped")
        if mapping is None:
            return self.fault(b"indirect table is not guest memory")
        # SAFETY: `length` is at most 16 * limit, the copy's room, and the mapping's size.
        memcpy(self.copied, mapping.data, length)
        vu_compiler_barrier()
        return 0

    def rebind(self, GuestMemory memory not None):
        """Go on in a new memory table."""
        self.check_sound()
        if self.stopped:
            return
        if self.flying and not memory.keeps(self.memory):
            raise ValueError(f"queue {self.queue}: {self.flying} requests in flight")
        # Used elements that are waiting belong to requests of the old table; the ring may move.
        self.flush()
        try:
            self.bind(memory)
        except Exception as error:
            self.cause = b"ring not covered by the new memory table"
            raise self.break_ring() from error
        self.be_in(memory)

    def log_writes(self, DirtyLog log, object used_ring=None):
        """Mark in `log` what is written from now on; None: mark nothing any more."""
        self.check_sound()
        if not self.stopped and self.mark_in(log, used_ring):
            self.note_outstanding()

    cdef int note_outstanding(self) except -1:
        # The chains of what was fetched before writes were logged are read anew, from the record if
        # its layout keeps them there. In a split ring a driver leaves them as they are until it has
        # them back; one that does not deceives itself alone, for where the device writes was
        # settled at the fetch.
        cdef Chain chain
        cdef Py_ssize_t head
        for head in range(self.size):
            if self.marks[head] != FREE and self.fetch_again(<uint16_t>head, &chain) < 0:
                raise self.break_ring()
        return 0

    def stop(self, *, bint keep=False):
        """Let go of guest memory without touching it; return the base of a ring that goes on."""
        if not self.stopped:
            if self.failure is None and not keep:
                if self.can_unfetch():
                    self.unfetch_all()
                self.kept = self.outstanding
                if not self.kept and not self.batched:
                    self.note_end()
                    if self.call_after_recovery:
                        # There is no successor that would do it.
                        self.signal()
            else:
                self.kept = self.outstanding
            self.stopped = True
            self.call_fd = -1
            self.detach()
        return self.base()
