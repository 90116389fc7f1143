# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""Transfers by io_uring: begun without a system call, submitted together, taken back later."""

cimport cython
from libc.errno cimport EAGAIN, EBUSY, EINTR, EINVAL, ENOMEM, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abort, calloc, free, malloc
from libc.string cimport memcpy
from posix.fcntl cimport F_DUPFD_CLOEXEC, fcntl
from posix.uio cimport iovec
from posix.unistd cimport close, fdatasync

from vuproc.shm.atomics cimport vu_load_relaxed64
from vuproc.shm.counters cimport EPOCHS, QueueCounters, add
from vuproc.shm.failures cimport in_words

from vuproc.errors import UringUnavailable

cdef extern from "Python.h":
    int PyObject_AsFileDescriptor(object file) except -1

cdef extern from "<errno.h>":
    enum:
        ECANCELED

cdef extern from "<sys/uio.h>" nogil:
    Py_ssize_t preadv2(int fd, const iovec *pieces, int count, int64_t offset, int flags)
    Py_ssize_t pwritev2(int fd, const iovec *pieces, int count, int64_t offset, int flags)

cdef extern from "uring.h" nogil:
    enum:
        VU_READ
        VU_WRITE
        VU_READV
        VU_WRITEV
        VU_FSYNC
        VU_FSYNC_DATA
        VU_ENTER_GETEVENTS
    int vu_uring_make(Kernel **ring, unsigned sq, unsigned cq)
    int vu_uring_fd(const Kernel *ring)
    int vu_uring_files(Kernel *ring, const int *files, unsigned count)
    void vu_uring_end(Kernel *ring)
    int vu_uring_enter(Kernel *ring, unsigned submit, unsigned complete, unsigned flags)
    unsigned vu_uring_waiting(Kernel *ring)
    int vu_uring_push(
        Kernel *ring, uint8_t opcode, int file, uint64_t where, uint32_t length, uint64_t offset,
        uint32_t flags, uint64_t user_data,
    )
    int vu_uring_push_cancel(Kernel *ring, uint64_t target, uint64_t user_data)
    void vu_uring_show(Kernel *ring)
    bint vu_uring_take(Kernel *ring, uint64_t *user_data, int32_t *result)
    bint vu_uring_has(const Kernel *ring)
    bint vu_uring_owes(Kernel *ring)

cdef enum:
    # virtio 1.2, 2.7: the largest queue. It is the kernel's largest submission queue, too.
    MAX_ENTRIES = 32768
    # Entries of the submission queue: more at a time are begun in more calls.
    MAX_SUBMISSIONS = 256
    # Pieces that one operation takes (Linux UIO_MAXIOV), and bytes (MAX_RW_COUNT).
    IOV_MAX = 1024
    MAX_BYTES = 0x7ffff000
    # Times in a row that an operation may be interrupted or put off before that is its error.
    VAIN_TRIES = 64

cdef uint64_t CANCELLED = <uint64_t>-1
"""What the answer to a request for an end is known by; transfers are known by their number."""

assert EPOCHS < 9, "Transfers.unseen has room for so many, and for the epoch"


cdef bint settle(Transfer *transfer, int32_t result, bint finishing, int *error) noexcept nogil:
    # Book what an operation moved; True if the transfer is over.
    cdef iovec *piece
    cdef uint64_t n
    if result < 0:
        transfer.vain += 1
        if (
            result in (-EINTR, -EAGAIN)
            and transfer.vain < VAIN_TRIES
            and not finishing
        ):
            return False
        error[0] = -result
        return True
    if transfer.operation == SYNC or result == 0:
        return True
    n = min(<uint64_t>result, transfer.left)
    transfer.vain = 0
    transfer.moved += n
    transfer.offset += n
    transfer.left -= n
    if transfer.left == 0 or finishing:
        return True
    while n:
        piece = transfer.pieces + transfer.first
        if n < piece.iov_len:
            piece.iov_base = <char *>piece.iov_base + n
            piece.iov_len -= n
            break
        n -= piece.iov_len
        transfer.first += 1
    return False


cdef int32_t carry_out(Transfer *transfer, int fd) noexcept nogil:
    # What is left of a transfer, or a part of that, by a call that blocks. Bytes, or -errno.
    cdef iovec *pieces = transfer.pieces + transfer.first
    cdef int count = <int>min(transfer.count - transfer.first, <uint32_t>IOV_MAX)
    cdef int64_t offset = <int64_t>transfer.offset
    cdef int flags = <int>transfer.flags
    cdef Py_ssize_t moved
    if transfer.operation == SYNC:
        moved = fdatasync(fd)
    elif transfer.operation == READ:
        moved = preadv2(fd, pieces, count, offset, flags)
    else:
        moved = pwritev2(fd, pieces, count, offset, flags)
    # The kernel moves no more than MAX_BYTES at a time.
    return -errno if moved < 0 else <int32_t>moved


@cython.no_gc
cdef class Transfers:
    """What native callers do with one io_uring; `Uring` is all of them, Python's too."""

    def __cinit__(self, Py_ssize_t entries, object files):
        cdef uint32_t size = 1
        cdef int failure, count = 0, fd
        if not 0 < entries <= MAX_ENTRIES:
            raise ValueError(f"{entries} transfers at a time, 1 to {MAX_ENTRIES} are possible")
        if not 0 < len(files) <= FILES:
            raise ValueError(f"{len(files)} files, 1 to {FILES} can be registered")
        for file in files:
            self.fds[count] = PyObject_AsFileDescriptor(file)
            count += 1
        for fd in self.fds[:count]:
            self.kept[self.file_count] = fcntl(fd, F_DUPFD_CLOEXEC, 0)
            if self.kept[self.file_count] < 0:
                raise UringUnavailable("keep files", errno, in_words(errno))
            self.file_count += 1
        while size < entries:
            size *= 2
        # Room for an answer to each transfer and to each request for an end of one.
        failure = vu_uring_make(&self.kernel, min(size, <uint32_t>MAX_SUBMISSIONS), 2 * size)
        if failure < 0:
            raise UringUnavailable("set up", -failure, in_words(-failure))
        failure = vu_uring_files(self.kernel, self.fds, count)
        if failure < 0:
            raise UringUnavailable("register files", -failure, in_words(-failure))
        # Touched as far as it is used: memory of a large queue that is never deep costs nothing.
        self.transfers = <Transfer *>calloc(size, sizeof(Transfer))
        if self.transfers == NULL:
            raise MemoryError
        self.entries = size
        self.free = self.waiting = self.waiting_last = size
        self.epoch = &self.unseen[EPOCHS]
        self.handed = &self.unseen[0]

    def __dealloc__(self):
        # Before its owner can let go of the memory.
        self.finish()
        self.end()
        free(self.transfers)

    cdef void end(self) noexcept nogil:
        # Let go of the kernel's ring, with nothing in flight.
        cdef int i
        vu_uring_end(self.kernel)
        self.kernel = NULL
        for i in range(self.file_count):
            close(self.kept[i])
        self.file_count = 0

    cdef int index_of(self, int fd) noexcept nogil:
        # The registered file that was given as `fd`; -1: it is none.
        cdef int i
        for i in range(self.file_count):
            if self.fds[i] == fd:
                return i
        return -1

    cdef int begin(
        self, Operation operation, int file, const iovec *pieces, uint32_t count, uint64_t offset,
        uint32_t flags, uint64_t tag,
    ) noexcept nogil:
        # Begin a transfer; the kernel is told by `submit`. The pieces' bytes must stay where they
        # are until `reap` gives the tag back, the array is copied. 0 or -errno, and then nothing.
        cdef Transfer *transfer
        cdef uint32_t slot = self.free, i
        if self.kernel == NULL or not 0 <= file < self.file_count:
            return -EINVAL
        if slot == <uint32_t>self.entries:
            if self.fresh == <uint32_t>self.entries:
                return -EBUSY
            slot = self.fresh
        # SAFETY: slot < entries, the array's length: from the list of free ones, or checked above.
        transfer = self.transfers + slot
        transfer.pieces = transfer.inline_pieces
        if count > PIECES:
            transfer.pieces = <iovec *>malloc(count * sizeof(iovec))
            if transfer.pieces == NULL:
                return -ENOMEM
        if slot == self.free:
            self.free = transfer.next
        else:
            self.fresh += 1
        transfer.left = 0
        transfer.count = 0
        for i in range(count):
            if pieces[i].iov_len:
                transfer.pieces[transfer.count] = pieces[i]
                transfer.count += 1
                transfer.left += pieces[i].iov_len
        transfer.operation = operation
        transfer.file = file
        transfer.first = 0
        transfer.offset = offset
        transfer.flags = flags
        transfer.moved = 0
        transfer.vain = 0
        transfer.tag = tag
        transfer.busy = True
        self.in_flight += 1
        transfer.epoch = vu_load_relaxed64(self.epoch) % EPOCHS
        add(self.handed + transfer.epoch, 1)
        self.push_or_queue(slot)
        return 0

    cdef void push_or_queue(self, uint32_t slot) noexcept nogil:
        # Behind those that wait for an entry of the submission queue, if there are any.
        if self.waiting == <uint32_t>self.entries and self.push(slot):
            return
        self.transfers[slot].next = self.entries
        if self.waiting == <uint32_t>self.entries:
            self.waiting = slot
        else:
            self.transfers[self.waiting_last].next = slot
        self.waiting_last = slot

    cdef bint push(self, uint32_t slot) noexcept nogil:
        # What is left of a transfer as one operation of the kernel's; False: no entry is free.
        cdef Transfer *transfer = self.transfers + slot
        cdef iovec *pieces = transfer.pieces + transfer.first
        cdef uint32_t count = transfer.count - transfer.first
        cdef bint reading = transfer.operation == READ
        if transfer.operation == SYNC:
            return vu_uring_push(
                self.kernel, VU_FSYNC, transfer.file, 0, 0, 0, VU_FSYNC_DATA, slot
            )
        if count == 1:
            return vu_uring_push(
                self.kernel, VU_READ if reading else VU_WRITE, transfer.file,
                <uint64_t>pieces.iov_base, <uint32_t>min(pieces.iov_len, <size_t>MAX_BYTES),
                transfer.offset, transfer.flags, slot,
            )
        return vu_uring_push(
            self.kernel, VU_READV if reading else VU_WRITEV, transfer.file, <uint64_t>pieces,
            min(count, <uint32_t>IOV_MAX), transfer.offset, transfer.flags, slot,
        )

    cdef bint unsubmitted(self) noexcept nogil:
        # True if the kernel has not taken all that was begun: `submit` again before sleeping.
        if self.kernel == NULL:
            return False
        return self.waiting != <uint32_t>self.entries or vu_uring_waiting(self.kernel) != 0

    cdef bint ready(self) noexcept nogil:
        # True if `reap` would find something.
        if self.kernel == NULL:
            return False
        return vu_uring_has(self.kernel) or vu_uring_owes(self.kernel)

    cdef int enter(self, unsigned complete, unsigned flags) noexcept nogil:
        # One system call: what was pushed, and wait for `complete` answers if the flags say so.
        vu_uring_show(self.kernel)
        return vu_uring_enter(self.kernel, vu_uring_waiting(self.kernel), complete, flags)

    cdef int submit(self) noexcept nogil:
        # Tell the kernel of all that was begun. 0, also if it cannot take all of it just now (see
        # `unsubmitted`), or -errno if it never will: nothing can be done with this ring then.
        cdef uint32_t slot
        cdef int answer
        while self.kernel != NULL:
            if vu_uring_waiting(self.kernel):
                answer = self.enter(0, 0)
                if answer in (-EAGAIN, -EBUSY, -EINTR):
                    return 0
                if answer < 0:
                    return answer
            while self.waiting != <uint32_t>self.entries:
                slot = self.waiting
                if not self.push(slot):
                    break
                self.waiting = self.transfers[slot].next
            if not vu_uring_waiting(self.kernel):
                break
        return 0

    cdef int reap(self, Outcome *outcomes, int room) noexcept nogil:
        # Take back up to `room` transfers that are over, and go on with those that moved a part:
        # they are submitted here. No system call otherwise. Their number, or -errno as `submit`.
        cdef int count = 0, answer
        cdef bint entered = False, again = False
        cdef uint64_t number
        cdef int32_t result
        cdef uint32_t slot
        cdef Transfer *transfer
        while count < room and self.kernel != NULL:
            if not vu_uring_take(self.kernel, &number, &result):
                if count or entered or not vu_uring_owes(self.kernel):
                    break
                entered = True
                answer = self.enter(0, VU_ENTER_GETEVENTS)
                if answer < 0 and answer not in (-EAGAIN, -EBUSY, -EINTR):
                    return answer
                continue
            if number >= <uint64_t>self.entries:
                continue
            slot = <uint32_t>number
            # SAFETY: slot < entries, the array's length.
            transfer = self.transfers + slot
            if result == -ECANCELED and not self.finishing:
                # By nobody: the kernel has no thread for what may block (at a limit of processes,
                # for one). We are a thread.
                result = carry_out(transfer, self.kept[transfer.file])
            outcomes[count].error = 0
            if not settle(transfer, result, self.finishing, &outcomes[count].error):
                self.push_or_queue(slot)
                again = True
                continue
            outcomes[count].tag = transfer.tag
            outcomes[count].moved = transfer.moved
            count += 1
            if transfer.pieces != transfer.inline_pieces:
                free(transfer.pieces)
                transfer.pieces = transfer.inline_pieces
            transfer.busy = False
            transfer.next = self.free
            self.free = slot
            self.in_flight -= 1
            add(self.handed + transfer.epoch, <uint64_t>-1)
        if again:
            answer = self.submit()
            if answer < 0:
                return answer
        return count

    cdef int wait(self) noexcept nogil:
        # Submit, and sleep until there is something to reap. 0 or -errno as `submit`.
        cdef int answer = self.submit()
        if answer < 0 or not self.in_flight:
            return answer
        answer = self.enter(1, VU_ENTER_GETEVENTS)
        return 0 if answer >= 0 or answer in (-EAGAIN, -EBUSY, -EINTR) else answer

    cdef int cancel(self) noexcept nogil:
        # Have all that was begun come to an end: what waits is given up, what a disk is at work on
        # is not. Whoever calls this goes on with `wait` and `reap` until nothing is in flight.
        cdef uint32_t slot
        cdef int answer
        self.finishing = True
        for slot in range(self.fresh):
            if self.transfers[slot].busy:
                while not vu_uring_push_cancel(self.kernel, slot, CANCELLED):
                    answer = self.wait()
                    if answer < 0:
                        return answer
        return self.submit()

    cdef void finish(self) noexcept nogil:
        # Nothing is in flight when this returns: the memory may be unmapped. As a blocking call it
        # takes as long as the disk does.
        cdef Outcome outcomes[OUTCOMES]
        cdef int answer
        if self.kernel == NULL or not self.in_flight:
            return
        answer = self.cancel()
        while answer >= 0 and self.in_flight:
            answer = self.wait()
            if answer >= 0:
                answer = self.reap(outcomes, OUTCOMES)
        if answer < 0:
            # The kernel has our memory and does not say for how long.
            abort()

    def count_in(self, QueueCounters counters not None):
        """Count what is in flight there, by its age; nothing is in flight yet."""
        if self.in_flight:
            raise ValueError(f"{self.in_flight} transfers are in flight")
        self.counters = counters
        # SAFETY: the block is there as long as its owner, which we keep, is not released, and a
        # worker releases none.
        self.epoch = &counters.block.epoch
        self.handed = &counters.block.handed[0]

    def fileno(self):
        """The ring's descriptor: readable while there is something to reap."""
        if self.kernel == NULL:
            raise ValueError("closed")
        return vu_uring_fd(self.kernel)

    @property
    def pending(self):
        """True if the kernel has not taken all that was begun: submit before sleeping."""
        return self.unsubmitted()
