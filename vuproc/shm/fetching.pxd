"""C interface of the near end of a ring: what is fetched, found, given back, and in which order."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.completions cimport Completions
from vuproc.shm.inflight cimport POISON
from vuproc.shm.memory cimport GuestMemory, Region
from vuproc.shm.request cimport BY_POLICY, DROP, FAIL, RUN_AGAIN, UNTOUCHED, Chain


cdef enum:
    # What `marks` has of a head, from its fetch to the store of the used index.
    FREE = 0
    TAKEN = 1
    HELD = 2                       # deferred by the native device


cdef struct Again:
    # A request that was fetched, and that nobody has at the moment.
    uint64_t order                 # the entry that it was fetched from, as `last_avail` counts
    uint16_t head
    uint8_t attempts               # deaths of workers inside `handle` of it
    uint8_t stage                  # UNTOUCHED to FAIL, as the record has it


cdef class Fetching(Completions):
    cdef GuestMemory memory        # all that is mapped
    cdef GuestMemory direct        # where descriptors' addresses are looked up first: the same, or
                                   # nowhere if there is an IOMMU
    cdef Region recent             # of it, the two that were looked up last, since a driver may have
    cdef Region earlier            # headers in the one and data in the other; size 0: none
    cdef bint missed               # a chain waits for translations: nothing is fetched before it
    cdef uint32_t limit            # most descriptors of one chain
    cdef uint64_t last_avail       # fetches, free-running; split: the index is its low 16 bits
    cdef uint16_t last_used        # next entry to complete; private, never read back (rule R3)
    cdef uint8_t *marks            # by head
    cdef uint8_t *states           # in the record, that of head 0: deaths in the low half, stage in
                                   # the high one. NULL: the layout has them elsewhere
    cdef int state_step            # bytes from one to the next
    cdef tuple found               # Recovered requests; None without a record
    cdef Again *again              # to be handed out before anything new, by `order`: those from
    cdef Py_ssize_t again_next     # here
    cdef Py_ssize_t again_end      # to here
    cdef Again *returned           # given back and not readmitted
    cdef Py_ssize_t returned_count
    cdef readonly Py_ssize_t kept  # requests that `stop` has left in the record
    cdef bint call_after_recovery  # the driver may have missed what a predecessor completed
    cdef object policy             # "drop" or "fail"; None: run again
    cdef iovec *pieces             # room for the pieces of one chain
    cdef int piece_room
    cdef readonly bint stopped
    cdef const char *cause         # what `fetch` or `look` found; NULL: nothing
    cdef object failure            # the RingError, once broken

    cdef int allocate(self, Py_ssize_t size, uint32_t limit) except -1
    cdef void begin_at(self, uint16_t index) noexcept
    cdef void adopt(self, tuple found, Py_ssize_t last) noexcept
    cdef int be_in(self, GuestMemory memory) except -1
    cdef int not_walked(self, uint16_t head) noexcept nogil
    cdef int translate(
        self, uint64_t addr, uint64_t length, iovec *out, int room
    ) noexcept nogil
    cdef int resume(self, Chain *chain, Again *which) except -2
    cdef void give_back(self, uint16_t head, uint64_t order) noexcept nogil
    cdef void line_up(self) noexcept nogil
    cdef bint can_unfetch(self)
    cdef void unfetch_all(self) noexcept
    cdef object check_sound(self)
    cdef object break_ring(self)
    # From here on no pointer into guest memory is left in the ring. Derived classes first end what
    # is theirs.
    cdef void detach(self) noexcept


cdef inline object reason_to_skip(Fetching ring, uint8_t attempts, uint8_t stage):
    # Why a request that comes again is not to be run; None: it is.
    if attempts >= POISON:
        return "poison"
    if stage == UNTOUCHED or stage == RUN_AGAIN:
        return None
    return "drop" if stage == DROP else "fail" if stage == FAIL else ring.policy


cdef inline bint find_near(
    Fetching ring, uint64_t addr, uint64_t length, iovec *out
) noexcept nogil:
    # A buffer that is not empty, if it is one piece and lies where one of the last two did.
    cdef Region *region = &ring.recent
    cdef uint64_t within = addr - region.guest_addr
    if within >= region.size:
        region = &ring.earlier
        within = addr - region.guest_addr
        if within >= region.size:
            return False
    if length > region.size - within or length == 0:
        return False
    # SAFETY: within + length <= size, so the piece is inside the region.
    out.iov_base = region.host + within
    out.iov_len = length
    return True


cdef inline int find_pieces(
    Fetching ring, uint64_t addr, uint64_t length, iovec *out, int room
) noexcept nogil:
    # `GuestMemory.translate` of what the ring can reach. Most buffers lie where the last ones did.
    if room > 0 and find_near(ring, addr, length, out):
        return 1
    return ring.translate(addr, length, out, room)


cdef inline const void *near(Fetching ring, uint64_t addr) noexcept nogil:
    # Where a buffer is, if it begins where one of the last two lay; else NULL. For hints.
    cdef iovec first
    return first.iov_base if find_near(ring, addr, 1, &first) else NULL


# Around the device's code. Inline: they run for each request.

cdef inline void note_begun(Fetching ring, uint16_t head, uint8_t attempts) noexcept nogil:
    # The device begins with a request, and what kills us now may be it. What it does with it is
    # not known here.
    ring.note_begin(head, attempts + 1)


cdef inline void note_taken(Fetching ring, uint16_t head) noexcept nogil:
    # The device has it. What it does with it, and when, is not known here.
    if ring.policy is not None:
        ring.note_stage(head, BY_POLICY)
