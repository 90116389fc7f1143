# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The disk over io_uring: many requests at the disk at a time, answered as they come back."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport abort, calloc, free, realloc
from libc.string cimport memset
from posix.uio cimport iovec

from vuproc.devices.blk_native cimport HEADER_BYTES, STATUS_IOERR, NativeBlk
from vuproc.shm.native cimport DEFERRED, IOV_MAX, cut_pieces
from vuproc.shm.request cimport Chain, RequestOwner
from vuproc.shm.transfers cimport OUTCOMES, READ, SYNC, WRITE, Operation, Outcome
from vuproc.shm.uring cimport Uring

from os import RWF_DSYNC

cdef uint32_t DURABLY = RWF_DSYNC

cdef enum:
    # What memory and length must be a multiple of for O_DIRECT to be tried.
    ALIGNMENT = 512
    # The image, as `Device.uring_files` gives it.
    IMAGE = 0
    # Requests after which the kernel is told of them in the middle of a batch: the disk is not to
    # wait for the last.
    AT_ONCE = 16


cdef class UringBlk(NativeBlk):
    """Serves an open image through the ring's io_uring; by blocking calls where there is none."""

    def __dealloc__(self):
        cdef int queue
        for queue in range(self.rooms):
            free(self.pending[queue])
        free(self.pending)

    cdef int attach(self, int queue, Py_ssize_t size, RequestOwner ring) except -1:
        cdef Pending **pending
        cdef Pending *room = <Pending *>calloc(size, sizeof(Pending))
        if room == NULL:
            raise MemoryError
        try:
            NativeBlk.attach(self, queue, size, ring)
        except BaseException:
            free(room)
            raise
        if queue >= self.rooms:
            pending = <Pending **>realloc(self.pending, (queue + 1) * sizeof(Pending *))
            if pending == NULL:
                free(room)
                NativeBlk.detach(self, queue)
                raise MemoryError
            memset(pending + self.rooms, 0, (queue + 1 - self.rooms) * sizeof(Pending *))
            self.pending = pending
            self.rooms = queue + 1
        free(self.pending[queue])
        self.pending[queue] = room
        return 0

    cdef int64_t read(
        self, Chain *chain, uint64_t offset, uint64_t length, uint8_t *status
    ) noexcept nogil:
        cdef iovec pieces[IOV_MAX]
        cdef int count
        if self.ring_uring(chain.queue) != NULL and length:
            count = cut_pieces(chain, True, 0, length, pieces, IOV_MAX)
            if self.begin(READ, chain, pieces, count, offset, length, 0, status):
                return DEFERRED
        return NativeBlk.read(self, chain, offset, length, status)

    cdef int64_t write(
        self, Chain *chain, uint64_t offset, uint64_t length, uint8_t *status
    ) noexcept nogil:
        cdef iovec pieces[IOV_MAX]
        cdef int count
        cdef uint32_t flags = 0 if self.cached else DURABLY
        if self.ring_uring(chain.queue) != NULL and length:
            count = cut_pieces(chain, False, HEADER_BYTES, length, pieces, IOV_MAX)
            if self.begin(WRITE, chain, pieces, count, offset, length, flags, status):
                if flags:
                    self.syncs += 1
                return DEFERRED
        return NativeBlk.write(self, chain, offset, length, status)

    cdef int64_t flush(self, Chain *chain, uint8_t *status) noexcept nogil:
        # It covers what was completed before (virtio 1.3, 5.2.6.2): no order with what is under way.
        if self.ring_uring(chain.queue) != NULL and self.begin(
            SYNC, chain, NULL, 0, 0, 0, 0, status
        ):
            self.syncs += 1
            return DEFERRED
        return NativeBlk.flush(self, chain, status)

    cdef bint begin(
        self, Operation operation, Chain *chain, const iovec *pieces, int count, uint64_t offset,
        uint64_t length, uint32_t flags, uint8_t *status,
    ) noexcept nogil:
        # False: nothing has happened, and a blocking call is to do it.
        cdef Pending *pending
        cdef uintptr_t bits = 0
        cdef uint64_t total = 0
        cdef int i
        for i in range(count):
            bits |= <uintptr_t>pieces[i].iov_base | pieces[i].iov_len
            total += pieces[i].iov_len
        if total != length or self.buffered != self.fd and bits % ALIGNMENT:
            return False
        # SAFETY: not NULL, as the callers have seen, and kept by the device.
        if (<Uring>self.ring_uring(chain.queue)).begin(
            operation, IMAGE, pieces, count, offset, flags, chain.head
        ) < 0:
            return False
        # SAFETY: the ring checked that the head is below its size, for which `attach` made room.
        pending = self.pending[chain.queue] + chain.head
        pending.length = length
        pending.status = status
        pending.operation = operation
        self.begun += 1
        if self.begun == AT_ONCE:
            self.submit(chain.queue)
        return True

    cdef void submit(self, int queue) noexcept nogil:
        cdef void *uring = self.ring_uring(queue)
        self.begun = 0
        # SAFETY: the device keeps it.
        if uring != NULL and (<Uring>uring).submit() < 0:
            # What is begun could not be ended. Another worker can.
            abort()

    cdef int reap(self, int queue) noexcept nogil:
        cdef void *uring = self.ring_uring(queue)
        cdef Outcome outcomes[OUTCOMES]
        cdef Pending *pending
        cdef int count = OUTCOMES, total = 0, i
        cdef uint16_t head
        cdef uint64_t written
        while count == OUTCOMES and uring != NULL:
            # SAFETY: the device keeps it.
            count = (<Uring>uring).reap(outcomes, OUTCOMES)
            if count < 0:
                abort()
            for i in range(count):
                head = <uint16_t>outcomes[i].tag
                # SAFETY: a tag of `begin`, so a head of the ring; its request is not completed yet,
                # and the ring keeps guest memory until `settle`.
                pending = self.pending[queue] + head
                written = outcomes[i].moved if pending.operation == READ else 0
                if outcomes[i].moved < pending.length and outcomes[i].error == 0:
                    # The image has become shorter: the driver is told, and nobody else.
                    pending.status[0] = STATUS_IOERR
                    self.complete(queue, head, written + 1)
                else:
                    self.complete(
                        queue, head, self.end(outcomes[i].error, written, pending.status)
                    )
            total += count
        return total

    cdef void settle(self, int queue) noexcept nogil:
        cdef void *uring = self.ring_uring(queue)
        # As long as the disk takes: guest memory may be unmapped afterwards.
        if uring != NULL:
            # SAFETY: the device keeps it.
            (<Uring>uring).finish()
