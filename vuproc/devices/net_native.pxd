"""C interface of a pair of network queues that is served without Python."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.native cimport NativeDevice
from vuproc.shm.request cimport Chain, RequestOwner


cdef enum:
    HEADER_BYTES = 12              # virtio_net_hdr of a driver that accepts VERSION_1 (5.1.6)
    MAX_FRAME = 65550              # as MAX_FRAME of vuproc.spec.net
    MOST_MERGED = 64               # receive buffers of one frame: as many as are shown at once
    MOST_TAKEN = 64                # that are looked at for one that a frame may begin in
    MOST_FRAMES = 256              # of one batch
    BATCH_BYTES = 448 << 10        # and their bytes
    TABLE = 64                     # addresses
    MOST_UNCOUNTED = 64            # frames that are counted together


cdef struct Held:
    # A receive buffer that was pulled and not filled yet: its chain, with but the writable pieces,
    # and the room for those.
    Chain chain
    iovec *pieces
    uint32_t room


cdef struct Wanted:
    # Which frames the driver is to have, as net_filter.py has it.
    bint all_frames
    bint broadcast
    bint any_unicast
    bint any_multicast
    bint by_vlan
    int unicast_count
    int multicast_count
    uint8_t unicast[TABLE + 1][6]
    uint8_t multicast[TABLE][6]
    uint8_t vlans[512]


@cython.final
cdef class Frames:
    cdef bytes block               # the frames, one behind the other
    cdef bytes places              # where each of them ends: `count` of uint32_t
    cdef Py_ssize_t count
    cdef const uint8_t *first      # of the block
    cdef const uint32_t *place     # and of the places
    cdef object _data
    cdef tuple _ends

    cdef int keep(self, bytes block, bytes places) except -1


@cython.final
cdef class NativePair(NativeDevice):
    cdef int receive
    cdef int transmit
    cdef int kind
    cdef int fd
    cdef int most                  # receive buffers that a frame may take
    cdef Py_buffer _down
    cdef bint _has_down
    cdef Held held[MOST_MERGED]
    cdef int held_count
    cdef Wanted wanted
    cdef uint8_t *scratch          # a header and a frame
    cdef object on_lost
    cdef object on_frames
    cdef bytes block               # the frames of the batch that is being gathered,
    cdef char *room                # which are written here
    cdef uint32_t ends[MOST_FRAMES]
    cdef int gathered
    cdef uint64_t uncounted        # frames that were dropped, and are to be counted

    cdef bint passes(self, const uint8_t *frame, uint64_t length) noexcept nogil
    cdef bint take(self, Chain *chain) noexcept nogil
    cdef bint hold(self, Chain *chain) noexcept nogil
    cdef bint offer(
        self, const uint8_t *header, const uint8_t *frame, uint64_t length
    ) noexcept nogil
    cdef bint deliver(
        self, const uint8_t *header, const uint8_t *frame, uint64_t length
    ) noexcept nogil
    cdef uint64_t fill(
        self, const Chain *chain, const uint8_t *header, int count, const uint8_t *frame,
        uint64_t length,
    ) noexcept nogil
    cdef void let_go(self, int count) noexcept nogil
    cdef int send_batch(self, Frames frames) except -1
    cdef const uint8_t *frame_of(self, const Chain *chain, uint8_t *to) noexcept nogil
    cdef void lose(self, int queue) noexcept nogil
    cdef void count_dropped(self) noexcept nogil
    cdef void forget(self) noexcept nogil
    cdef void hand_over(self) noexcept nogil
    cdef int hand_over_now(self) except -1
    cdef int make_room_for_frames(self) except -1
    cdef uint64_t end(self) noexcept nogil
