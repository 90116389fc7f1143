# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""One request: a chain's bytes as two streams, with verbs that move data without Python objects."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.uio cimport iovec

from vuproc.shm.cursor cimport Cursor, advance, copy_in, copy_out
from vuproc.shm.extents cimport bytes_behind, note_extent
from vuproc.shm.missing cimport vu_missing
from vuproc.shm.request_files cimport hand_over
from vuproc.shm.request_views cimport drop_views, hand_out_views
from vuproc.shm.blocking cimport transfer
from vuproc.shm.transfers cimport READ, SYNC, WRITE

from vuproc.errors import RequestFinished

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil
    int PyObject_AsFileDescriptor(object file) except -1

STAGES = ("run", "drop", "fail")
"""What `resubmit` takes: RUN_AGAIN, DROP and FAIL in the record."""

cdef enum:
    # Most bytes that a read without a number gives: the length is the driver's choice.
    READ_LIMIT = 1 << 24


cdef class RequestOwner:
    """What hands out requests and takes them back: the base of every ring."""

    def __cinit__(self):
        self.thread = PyThread_get_thread_ident()

    cdef void request_closed(self, Request request) noexcept:
        vu_missing("request_closed")

    cdef void request_released(self, Request request) noexcept:
        vu_missing("request_released")

    cdef void request_staged(self, Request request) noexcept:
        vu_missing("request_staged")

    cdef object resubmit_of_ring(self):
        vu_missing("resubmit_of_ring")

    cdef void native_done(self, uint16_t head, uint64_t written) noexcept nogil:
        vu_missing("native_done")

    cdef int native_pull(self, Chain *chain) noexcept nogil:
        vu_missing("native_pull")
        return -1

    cdef void native_returned(self, uint16_t head, uint64_t order) noexcept nogil:
        vu_missing("native_returned")

    cdef void native_together(self, int count) noexcept nogil:
        vu_missing("native_together")

    cdef void native_show(self) noexcept nogil:
        vu_missing("native_show")

    cdef void native_dropped(self, uint64_t count) noexcept nogil:
        vu_missing("native_dropped")

    cdef bint elsewhere(self) noexcept:
        # Called by another thread than the one that has the ring's turns.
        return PyThread_get_thread_ident() != self.thread

    cdef void revoke_views(self) noexcept:
        # Each takes itself off the list.
        while self.viewed != NULL:
            # SAFETY: a request that is deallocated takes itself off the list before.
            drop_views(<Request>self.viewed)


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Request:
    """One chain of a virtqueue: what the driver gave to read, and room to write the answer to."""

    def __init__(self):
        raise TypeError("a ring makes its requests")

    def __dealloc__(self):
        # Never completed from here: a worker that dies of an exception frees its requests too, and
        # they must stay in flight for the one that comes after it.
        if self.state == OPEN and self.epoch == self.owner.epoch:
            self.owner.lost += 1
        if self.handed_out != NULL:
            drop_views(self)
        if self.pieces != self.inline_pieces:
            free(self.pieces)

    cdef int open(self, RequestOwner owner, GuestMemory memory, Chain *chain) except -1:
        cdef size_t count = <size_t>chain.readable_count + chain.writable_count
        if count <= INLINE_PIECES:
            self.pieces = self.inline_pieces
        else:
            self.pieces = <iovec *>malloc(count * sizeof(iovec))
            if self.pieces == NULL:
                raise MemoryError
        memcpy(self.pieces, chain.pieces, count * sizeof(iovec))
        self.owner = owner
        self.memory = memory
        self.epoch = owner.epoch
        self.number = owner.queue
        self._head = chain.head
        self.readable_count = chain.readable_count
        self.writable_count = chain.writable_count
        self.total_readable = self.reading.left = chain.readable
        self.total_writable = self.writing.left = chain.writable
        self.writing.piece = chain.readable_count
        self.state = OPEN
        return 0

    cdef bint make_anew(self) noexcept:
        # As it was before `open`, if it has nothing that somebody may still ask for, and if nobody
        # but the caller has it, which that one has seen to.
        if self.state != CLOSED or self.finished_elsewhere or self.handed_out != NULL:
            return False
        if self.pieces != self.inline_pieces:
            return False
        # What it keeps goes: memory is unmapped with the last who has it.
        self.owner = None
        self.memory = None
        self.done = None
        self.reading.piece = 0
        self.reading.within = self.writing.within = 0
        self.put_there.count = 0
        self.used = 0
        self.stage = 0
        self.is_deferred = False
        return True

    cdef bint is_open(self) noexcept:
        return self.state == OPEN and self.epoch == self.owner.epoch

    cdef void close(self, uint64_t used) noexcept:
        self.used = used
        self.state = CLOSED
        if self.handed_out != NULL:
            drop_views(self)
        self.owner.request_closed(self)

    cdef uint64_t count_written(self) noexcept:
        # The cursor's bytes and those of `put` beyond it, each once.
        cdef uint64_t position = self.total_writable - self.writing.left
        return position + bytes_behind(&self.put_there, position)

    cdef int finish_with(self, bytes done) except -1:
        if done:
            self.put(-<int64_t>len(done), done)
        self.close(self.count_written())
        return 0

    cdef int check(self) except -1:
        if not self.is_open():
            raise RequestFinished(self.number, self._head)
        return 0

    @property
    def queue(self):
        """The virtqueue's number."""
        return self.number

    @property
    def head(self):
        """The head descriptor's index."""
        return self._head

    @property
    def readable(self):
        """Bytes left to read at the cursor."""
        return self.reading.left

    @property
    def writable(self):
        """Bytes left to write at the cursor."""
        return self.writing.left

    @property
    def readable_total(self):
        """All bytes which the driver gave to read."""
        return self.total_readable

    @property
    def writable_total(self):
        """All bytes which the driver gave room for."""
        return self.total_writable

    @property
    def written(self):
        """Bytes written so far by the verbs; once finished, the used length."""
        return self.count_written() if self.state == OPEN else self.used

    @property
    def finished(self):
        """True once finished, or once the ring has stopped or broken."""
        return not self.is_open()

    @property
    def deferred(self):
        """True once `defer` was called."""
        return self.is_deferred

    @deferred.setter
    def deferred(self, bint value):
        self.is_deferred = value

    @property
    def readable_segments(self):
        """Read-only views of guest memory: the whole readable area."""
        self.check()
        return hand_out_views(self, 0, self.readable_count, True)

    @property
    def writable_segments(self):
        """Writable views of guest memory, the whole area."""
        self.check()
        return hand_out_views(self, self.readable_count, self.writable_count, False)

    def read(self, Py_ssize_t n=-1):
        """Copy up to `n` bytes (-1: all that are left) and move the cursor."""
        cdef object data
        self.check()
        if n < 0:
            if self.reading.left > READ_LIMIT:
                raise ValueError(f"{self.reading.left} bytes to read: give a number")
            n = self.reading.left
        elif <uint64_t>n > self.reading.left:
            n = self.reading.left
        data = PyBytes_FromStringAndSize(NULL, n)
        copy_out(self.pieces, &self.reading, PyBytes_AS_STRING(data), n)
        return data

    def skip(self, Py_ssize_t n):
        """Move the read cursor over up to `n` bytes; return how many."""
        self.check()
        if n < 0:
            raise ValueError("cannot skip backwards")
        if <uint64_t>n > self.reading.left:
            n = self.reading.left
        advance(self.pieces, &self.reading, n)
        return n

    def write(self, data):
        """Copy bytes at the write cursor, at most `writable`; return how many were taken."""
        cdef Py_buffer view
        cdef uint64_t n
        self.check()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        n = min(<uint64_t>view.len, self.writing.left)
        copy_in(self.pieces, &self.writing, <const char *>view.buf, n)
        PyBuffer_Release(&view)
        return n

    def put(self, int64_t offset, data):
        """Copy bytes to an absolute offset of the writable area, leaving the cursor alone."""
        cdef Py_buffer view
        cdef uint64_t n
        self.check()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        n = view.len
        try:
            self.put_at(offset, <const char *>view.buf, n)
        finally:
            PyBuffer_Release(&view)
        return n

    cdef bint has_place(self, int64_t offset, uint64_t n) noexcept:
        # For `n` bytes at an offset of the writable area, or from its end.
        cdef uint64_t start
        if offset < 0:
            offset += <int64_t>self.total_writable
        start = offset
        return offset >= 0 and start <= self.total_writable and n <= self.total_writable - start

    cdef int put_at(self, int64_t offset, const char *data, uint64_t n) except -1:
        cdef Cursor at
        cdef uint64_t start, tail
        if not self.has_place(offset, n):
            raise ValueError(f"{n} bytes at {offset} of {self.total_writable} writable ones")
        if n == 0:
            return 0
        if offset < 0:
            offset += <int64_t>self.total_writable
        start = offset
        at.piece = self.readable_count
        at.within = 0
        at.left = self.total_writable
        # Most often a status in the last piece: no walk over the others.
        tail = self.pieces[self.readable_count + self.writable_count - 1].iov_len
        if start >= self.total_writable - tail:
            at.piece = self.readable_count + self.writable_count - 1
            at.within = start - (self.total_writable - tail)
            at.left = self.total_writable - start
        else:
            advance(self.pieces, &at, start)
        copy_in(self.pieces, &at, data, n)
        note_extent(&self.put_there, start, start + n)
        return 0

    def preadv(self, file, int64_t offset, Py_ssize_t n=-1):
        """Read `n` bytes (-1: as many as fit) of a file into the writable area at the cursor."""
        self.check()
        cdef int fd = PyObject_AsFileDescriptor(file)
        return transfer(self.pieces, &self.writing, False, fd, offset, n)

    def pwritev(self, file, int64_t offset, Py_ssize_t n=-1):
        """Write `n` bytes (-1: all that are left) at the read cursor to a file."""
        self.check()
        cdef int fd = PyObject_AsFileDescriptor(file)
        return transfer(self.pieces, &self.reading, True, fd, offset, n)

    def finish_preadv(
        self, file, int64_t offset, Py_ssize_t n=-1, *, bytes done not None=b"", buffered=None
    ):
        """Read `n` bytes of a file at the cursor, end with `done`, and complete the request."""
        cdef uint64_t room, wanted
        self.check()
        room = self.writing.left - min(<uint64_t>len(done), self.writing.left)
        wanted = room if n < 0 else n
        if wanted > room:
            raise ValueError(f"{n} bytes and {len(done)} to end with, of {self.writing.left}")
        hand_over(self, READ, file, buffered, offset, wanted, done, False)

    def finish_pwritev(
        self, file, int64_t offset, Py_ssize_t n=-1, *, bytes done not None=b"",
        bint durable=False, buffered=None,
    ):
        """Write `n` bytes at the read cursor to a file, end with `done`, complete the request."""
        cdef uint64_t wanted
        self.check()
        wanted = self.reading.left if n < 0 else n
        if wanted > self.reading.left:
            raise ValueError(f"{n} bytes wanted of {self.reading.left}")
        hand_over(self, WRITE, file, buffered, offset, wanted, done, durable)

    def finish_fdatasync(self, file, *, bytes done not None=b""):
        """Bring what was written to stable storage, end with `done`, complete the request."""
        self.check()
        hand_over(self, SYNC, file, None, 0, 0, done, True)

    def defer(self):
        """Keep the request open after `handle` returns, to be finished later."""
        self.check()
        self.is_deferred = True

    def release(self):
        """Give the request back without completing it."""
        self.check()
        if self.owner.elsewhere():
            raise RuntimeError("release is for the worker's thread: use call_soon")
        self.state = RELEASED
        if self.handed_out != NULL:
            drop_views(self)
        self.owner.request_released(self)

    @property
    def resubmit(self):
        """What becomes of the request should the worker die before it is completed."""
        if self.stage == 0:
            return self.owner.resubmit_of_ring()
        return STAGES[self.stage - RUN_AGAIN]

    @resubmit.setter
    def resubmit(self, value):
        self.check()
        if value not in STAGES:
            raise ValueError(f"resubmit is run, drop or fail, not {value!r}")
        self.stage = RUN_AGAIN + STAGES.index(value)
        self.owner.request_staged(self)

    def finish(self, written=None):
        """Complete the request; `written` is the used length (default: what the verbs wrote)."""
        cdef uint64_t used
        self.check()
        if written is None:
            used = self.count_written()
        elif 0 <= written <= self.total_writable:
            used = written
        else:
            raise ValueError(f"{written} written of {self.total_writable} writable bytes")
        self.close(used)

    def __repr__(self):
        return (
            f"<Request queue={self.number} head={self._head} readable={self.reading.left}"
            f"/{self.total_readable} writable={self.writing.left}/{self.total_writable}"
            f"{self._end()}"
            f"{' deferred' if self.is_open() and self.is_deferred else ''}>"
        )

    def _end(self):
        if self.is_open():
            return ""
        return {HANDED: " handed over", RELEASED: " released"}.get(self.state, " finished")
