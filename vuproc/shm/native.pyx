# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""Devices served without Python: their base class, and verbs over one chain of descriptors."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset
from posix.uio cimport iovec, preadv, pwritev

from vuproc.shm.missing cimport vu_missing
from vuproc.shm.request cimport Chain, RequestOwner
from vuproc.shm.uring cimport Uring

cdef extern from "<unistd.h>" nogil:
    Py_ssize_t pread(int fd, void *to, size_t n, int64_t offset)
    Py_ssize_t pwrite(int fd, const void *data, size_t n, int64_t offset)


cdef enum:
    # The number of a queue has 16 bits in the specifications.
    MOST_QUEUES = 65536


cdef class NativeDevice:
    """What serves the requests of one queue, or of several, without Python. Subclass it in Cython."""

    def __cinit__(self):
        self.completion_fd = -1
        self.rings = {}
        self.urings = {}

    def __dealloc__(self):
        free(self.served)

    def set_uring(self, int queue, Uring uring):
        """Give the device the io_uring of a queue's ring; None takes it away."""
        self.make_room(queue)
        self.served[queue].uring = NULL
        self.urings[queue] = uring
        if uring is not None:
            # SAFETY: the dictionary keeps it as long as the pointer is there.
            self.served[queue].uring = <void *>uring

    def uring_of(self, int queue):
        """The io_uring of a queue's ring; None without one."""
        return self.urings.get(queue)

    cdef int make_room(self, int queue) except -1:
        cdef Served *served
        if not 0 <= queue < MOST_QUEUES:
            raise ValueError(f"there is no queue {queue}")
        if queue < self.queues:
            return 0
        served = <Served *>realloc(self.served, (queue + 1) * sizeof(Served))
        if served == NULL:
            raise MemoryError
        memset(served + self.queues, 0, (queue + 1 - self.queues) * sizeof(Served))
        self.served = served
        self.queues = queue + 1
        return 0

    cdef int attach(self, int queue, Py_ssize_t size, RequestOwner ring) except -1:
        self.make_room(queue)
        if self.served[queue].ring != NULL:
            raise RuntimeError("the native device serves another ring of this queue")
        self.rings[queue] = ring
        # SAFETY: the dictionary keeps it as long as the pointer is there.
        self.served[queue].ring = <void *>ring
        return 0

    cdef int detach(self, int queue) except -1:
        cdef Uring uring = self.urings.get(queue)
        self.served[queue].ring = self.served[queue].uring = NULL
        self.rings.pop(queue, None)
        self.urings.pop(queue, None)
        if uring is not None:
            uring.close()
        return 0

    cdef int64_t serve(self, Chain *chain) noexcept nogil:
        vu_missing("serve")
        return 0

    cdef void expect(self, const iovec *firsts, int count) noexcept nogil:
        pass

    # What completes its requests inside `serve` has nothing to do in these.

    cdef void submit(self, int queue) noexcept nogil:
        pass

    cdef int reap(self, int queue) noexcept nogil:
        return 0

    cdef void settle(self, int queue) noexcept nogil:
        pass

    cdef void complete(self, int queue, uint16_t head, uint64_t written) noexcept nogil:
        if 0 <= queue < self.queues and self.served[queue].ring != NULL:
            (<RequestOwner>self.served[queue].ring).native_done(head, written)

    cdef int pull(self, int queue, Chain *chain) noexcept nogil:
        if 0 <= queue < self.queues and self.served[queue].ring != NULL:
            return (<RequestOwner>self.served[queue].ring).native_pull(chain)
        return 0

    cdef void give_back(self, int queue, uint16_t head, uint64_t order) noexcept nogil:
        if 0 <= queue < self.queues and self.served[queue].ring != NULL:
            (<RequestOwner>self.served[queue].ring).native_returned(head, order)

    cdef void together(self, int queue, int count) noexcept nogil:
        if 0 <= queue < self.queues and self.served[queue].ring != NULL:
            (<RequestOwner>self.served[queue].ring).native_together(count)

    cdef void show(self, int queue) noexcept nogil:
        if 0 <= queue < self.queues and self.served[queue].ring != NULL:
            (<RequestOwner>self.served[queue].ring).native_show()

    cdef void drop(self, int queue, uint64_t count) noexcept nogil:
        if 0 <= queue < self.queues and self.served[queue].ring != NULL:
            (<RequestOwner>self.served[queue].ring).native_dropped(count)

    cdef void *ring_uring(self, int queue) noexcept nogil:
        return self.served[queue].uring if 0 <= queue < self.queues else NULL

    cdef void fail(self, int reason) noexcept nogil:
        self.failures += 1
        self.failure = reason


cdef int cut_pieces(
    const Chain *chain, bint writable, uint64_t at, uint64_t n, iovec *out, int room
) noexcept nogil:
    cdef iovec *piece = chain.pieces
    cdef uint32_t left = chain.readable_count
    cdef uint64_t total = chain.readable, here
    cdef int count = 0
    if writable:
        piece += chain.readable_count
        left = chain.writable_count
        total = chain.writable
    if at >= total:
        return 0
    n = min(n, total - at)
    # The pieces of a stream add up to its total: at < total, so the walk ends inside them.
    while at >= piece.iov_len:
        at -= piece.iov_len
        piece += 1
        left -= 1
    while n and left and count < room:
        here = min(<uint64_t>piece.iov_len - at, n)
        if here:
            # SAFETY: at < iov_len and at + here <= iov_len: inside a piece that the ring checked.
            out[count].iov_base = <char *>piece.iov_base + at
            out[count].iov_len = here
            count += 1
        n -= here
        at = 0
        piece += 1
        left -= 1
    return count


cdef uint64_t copy_out(const Chain *chain, uint64_t at, void *to, uint64_t n) noexcept nogil:
    cdef iovec piece
    cdef uint64_t done = 0
    while done < n and cut_pieces(chain, False, at + done, n - done, &piece, 1):
        # SAFETY: the piece is inside the chain, and no longer than what is left of `n`.
        memcpy(<char *>to + done, piece.iov_base, piece.iov_len)
        done += piece.iov_len
    return done


cdef uint64_t copy_in(const Chain *chain, uint64_t at, const void *data, uint64_t n) noexcept nogil:
    cdef iovec piece
    cdef uint64_t done = 0
    while done < n and cut_pieces(chain, True, at + done, n - done, &piece, 1):
        # SAFETY: the piece is inside the chain, and no longer than what is left of `n`.
        memcpy(piece.iov_base, <const char *>data + done, piece.iov_len)
        done += piece.iov_len
    return done


cdef uint64_t read_file(
    const Chain *chain, uint64_t at, uint64_t n, int fd, int64_t offset, int *reason
) noexcept nogil:
    return transfer(chain, False, at, n, fd, offset, reason)


cdef uint64_t write_file(
    const Chain *chain, uint64_t at, uint64_t n, int fd, int64_t offset, int *reason
) noexcept nogil:
    return transfer(chain, True, at, n, fd, offset, reason)


cdef uint64_t transfer(
    const Chain *chain, bint out, uint64_t at, uint64_t n, int fd, int64_t offset, int *reason
) noexcept nogil:
    # The kernel copies: guest memory that went away is EFAULT here and no SIGBUS.
    cdef uint64_t done = 0
    cdef Py_ssize_t moved
    reason[0] = 0
    while done < n:
        moved = move(chain, out, at + done, n - done, fd, offset + <int64_t>done)
        if moved > 0:
            done += moved
        elif moved == 0:
            break
        elif errno != EINTR:
            reason[0] = errno
            break
    return done


cdef Py_ssize_t move(
    const Chain *chain, bint out, uint64_t at, uint64_t n, int fd, int64_t offset
) noexcept nogil:
    # One system call. A single piece, which most requests have, is spared the kernel's copy of it.
    cdef iovec block[IOV_MAX]
    cdef int count = cut_pieces(chain, not out, at, n, block, IOV_MAX)
    if count == 0:
        return 0
    if count == 1:
        if out:
            return pwrite(fd, block[0].iov_base, block[0].iov_len, offset)
        return pread(fd, block[0].iov_base, block[0].iov_len, offset)
    if out:
        return pwritev(fd, block, count, offset)
    return preadv(fd, block, count, offset)
