# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""One queue's io_uring: transfers between files and memory that the kernel carries out meanwhile."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.uio cimport iovec

from vuproc.shm.failures cimport os_error
from vuproc.shm.transfers cimport OUTCOMES, READ, SYNC, WRITE, Operation, Outcome, Transfers


@cython.final
@cython.no_gc
cdef class Uring(Transfers):
    """Transfers of Python callers, whose buffers are kept until they are over, and of native ones."""

    def __cinit__(self, Py_ssize_t entries, object files):
        self.buffers = {}

    def __dealloc__(self):
        # Before our buffers go.
        self.finish()

    def read(self, int file, buffers, uint64_t offset, uint64_t tag, *, uint32_t flags=0):
        """Begin to fill the buffers from the file at `offset`."""
        self.begin_python(READ, file, buffers, offset, flags, tag)

    def write(self, int file, buffers, uint64_t offset, uint64_t tag, *, uint32_t flags=0):
        """Begin to write the buffers to the file at `offset`."""
        self.begin_python(WRITE, file, buffers, offset, flags, tag)

    def sync(self, int file, uint64_t tag):
        """Begin to bring what was written before to stable storage."""
        self.begin_python(SYNC, file, (), 0, 0, tag)

    cdef int begin_python(
        self, Operation operation, int file, object buffers, uint64_t offset, uint32_t flags,
        uint64_t tag,
    ) except -1:
        cdef Py_buffer view
        cdef iovec *pieces
        cdef uint32_t count = 0
        cdef int answer
        cdef list kept = [memoryview(buffer) for buffer in buffers]
        if self.kernel == NULL:
            raise ValueError("closed")
        if tag in self.buffers:
            raise ValueError(f"transfer {tag} is in flight")
        pieces = <iovec *>malloc((len(kept) + 1) * sizeof(iovec))
        if pieces == NULL:
            raise MemoryError
        try:
            for one in kept:
                PyObject_GetBuffer(
                    one, &view, PyBUF_SIMPLE if operation == WRITE else PyBUF_WRITABLE
                )
                # SAFETY: the memoryview holds the buffer as long as `buffers` has it.
                pieces[count].iov_base = view.buf
                pieces[count].iov_len = view.len
                count += 1
                PyBuffer_Release(&view)
            answer = self.begin(operation, file, pieces, count, offset, flags, tag)
        finally:
            free(pieces)
        if answer < 0:
            raise os_error(-answer)
        self.buffers[tag] = kept
        return 0

    def submit_all(self):
        """Tell the kernel of all that was begun."""
        cdef int answer
        with nogil:
            answer = self.submit()
        if answer < 0:
            raise os_error(-answer)

    def collect(self, *, bint wait=False):
        """(tag, bytes moved, errno or 0) of each transfer that is over."""
        cdef Outcome outcomes[OUTCOMES]
        cdef int answer = 0, i
        cdef list made = []
        with nogil:
            if wait:
                answer = self.wait()
            if answer >= 0:
                answer = self.reap(outcomes, OUTCOMES)
        if answer < 0:
            raise os_error(-answer)
        for i in range(answer):
            self.buffers.pop(outcomes[i].tag, None)
            made.append((outcomes[i].tag, outcomes[i].moved, outcomes[i].error))
        return made

    def close(self):
        """End what is in flight and let go of the kernel's ring; a second time is fine."""
        with nogil:
            self.finish()
            self.end()
        self.buffers.clear()
