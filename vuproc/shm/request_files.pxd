"""How a request ends by a transfer to or from a file: through io_uring, or by blocking calls."""

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EBUSY, EIO, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.cursor cimport IOV_MAX, Cursor, advance, aligned, cut
from vuproc.shm.failures cimport os_error
from vuproc.shm.request cimport CLOSED, HANDED, OPEN, Request
from vuproc.shm.request_views cimport drop_views
from vuproc.shm.blocking cimport transfer
from vuproc.shm.transfers cimport READ, WRITE, Operation, Outcome

cdef extern from "Python.h":
    int PyObject_AsFileDescriptor(object file) except -1

cdef extern from "<sys/uio.h>" nogil:
    uint32_t RWF_DSYNC

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)


cdef inline Cursor *cursor_of(Request request, Operation operation) noexcept:
    return &request.writing if operation == READ else &request.reading


cdef inline int hand_over(
    Request request, Operation operation, object given, object buffered, int64_t offset,
    uint64_t wanted, bytes done, bint durable,
) except -1:
    # Move `wanted` bytes at the cursor, end with `done`, and complete the request: now, or once the
    # kernel has moved them. `buffered`: the same file, for memory that is not aligned.
    cdef iovec block[IOV_MAX]
    cdef int fd = PyObject_AsFileDescriptor(given)
    cdef int file = -1, count = 0, answer
    if <uint64_t>len(done) > request.total_writable:
        raise ValueError(f"{len(done)} bytes to end with, of {request.total_writable}")
    # Another thread has its requests block: io_uring is the one of the ring's own.
    if request.owner.uring is not None and not request.owner.elsewhere():
        file = request.owner.uring.index_of(fd)
    if wanted and (file >= 0 or buffered is not None):
        count = cut(request.pieces, cursor_of(request, operation), wanted, block)
        if count == IOV_MAX:
            # Perhaps not all of it.
            file = -1
        if buffered is not None and not aligned(block, count):
            fd = PyObject_AsFileDescriptor(buffered)
            file = -1
    if file < 0:
        return finish_now(request, operation, fd, offset, wanted, done, durable)
    answer = request.owner.uring.begin(
        operation, file, block, count, offset, RWF_DSYNC if durable and wanted else 0,
        <uint64_t><void *>request,
    )
    if answer in (-EBUSY, -ENOMEM):
        return finish_now(request, operation, fd, offset, wanted, done, durable)
    if answer < 0:
        raise os_error(-answer)
    # `take_back` or `give_up` answers it; until then the kernel has our address.
    Py_INCREF(request)
    request.operation = operation
    request.wanted = wanted
    request.done = done
    request.state = HANDED
    return 0


cdef inline int finish_now(
    Request request, Operation operation, int fd, int64_t offset, uint64_t wanted, bytes done,
    bint durable,
) except -1:
    # The same by blocking calls.
    cdef Cursor *cursor = cursor_of(request, operation)
    cdef uint64_t moved, left = wanted
    cdef int failure = 0
    while left:
        moved = transfer(request.pieces, cursor, operation == WRITE, fd, offset, left)
        if moved == 0:
            raise OSError(EIO, f"{left} of {wanted} bytes are behind the end of the file")
        offset += <int64_t>moved
        left -= moved
    if durable:
        with nogil:
            if fdatasync(fd):
                failure = errno
        if failure:
            raise os_error(failure)
    return request.finish_with(done)


cdef inline object take_back(Request request, const Outcome *outcome):
    # The kernel has finished. The request is complete, or the handler's again: the OSError.
    cdef uint64_t left = request.wanted - outcome.moved
    Py_DECREF(request)
    request.state = OPEN
    request.is_deferred = True
    advance(request.pieces, cursor_of(request, request.operation), outcome.moved)
    if outcome.error:
        return os_error(outcome.error)
    if left:
        return OSError(EIO, f"{left} of {request.wanted} bytes are behind the end of the file")
    request.finish_with(request.done)
    return None


cdef inline void give_up(Request request) noexcept:
    # The kernel has finished, and nobody wants the request any more.
    request.state = CLOSED
    if request.handed_out != NULL:
        drop_views(request)
    Py_DECREF(request)
