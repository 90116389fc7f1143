"""Blocking transfers between a file and the pieces of a stream."""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from posix.uio cimport iovec, preadv, pwritev

from vuproc.shm.cursor cimport IOV_MAX, Cursor, advance, cut
from vuproc.shm.failures cimport os_error


cdef extern from "Python.h":
    ctypedef struct PyInterpreterState:
        pass
    ctypedef struct PyThreadState:
        pass
    PyInterpreterState *PyInterpreterState_Get()
    PyInterpreterState *PyInterpreterState_Head()
    PyInterpreterState *PyInterpreterState_Next(PyInterpreterState *one)
    PyThreadState *PyInterpreterState_ThreadHead(PyInterpreterState *one)
    PyThreadState *PyThreadState_Next(PyThreadState *one)

cdef extern from "<unistd.h>" nogil:
    Py_ssize_t pread(int fd, void *to, size_t n, int64_t offset)
    Py_ssize_t pwrite(int fd, const void *data, size_t n, int64_t offset)


cdef inline bint is_only_thread():
    # Of Python's in this process: nobody waits for the GIL, and to let go of it and to take it again
    # is as much work as a verb. A thread of C that enters Python meanwhile waits for one call.
    return (
        PyInterpreterState_Next(PyInterpreterState_Head()) == NULL
        and PyThreadState_Next(PyInterpreterState_ThreadHead(PyInterpreterState_Get())) == NULL
    )


cdef inline Py_ssize_t step(
    iovec *pieces, Cursor *cursor, bint out, int fd, int64_t offset, uint64_t n
) noexcept nogil:
    # One system call for up to `n` bytes at the cursor, 0 < n <= left: what it has answered, and
    # errno. The kernel copies: guest memory that went away is EFAULT here and no SIGBUS. A single
    # piece, which most requests have, is spared its copy of the pieces.
    cdef iovec block[IOV_MAX]
    cdef int count = cut(pieces, cursor, n, block)
    cdef Py_ssize_t moved
    if count == 1 and out:
        moved = pwrite(fd, block[0].iov_base, block[0].iov_len, offset)
    elif count == 1:
        moved = pread(fd, block[0].iov_base, block[0].iov_len, offset)
    elif out:
        moved = pwritev(fd, block, count, offset)
    else:
        moved = preadv(fd, block, count, offset)
    if moved > 0:
        advance(pieces, cursor, moved)
    return moved


cdef inline uint64_t transfer(
    iovec *pieces, Cursor *cursor, bint out, int fd, int64_t offset, Py_ssize_t n
) except? 0xffffffffffffffff:
    # Up to `n` bytes at the cursor (-1: all that are left), `out` of them to the file; how many.
    cdef uint64_t wanted, done = 0
    cdef Py_ssize_t moved
    cdef int failure
    if n < 0:
        wanted = cursor.left
    else:
        wanted = n
        if wanted > cursor.left:
            raise ValueError(f"{n} bytes wanted of {cursor.left}")
    while done < wanted:
        if is_only_thread():
            moved = step(pieces, cursor, out, fd, offset + <int64_t>done, wanted - done)
            failure = errno
        else:
            with nogil:
                moved = step(pieces, cursor, out, fd, offset + <int64_t>done, wanted - done)
                failure = errno
        if moved < 0:
            if failure == EINTR:
                PyErr_CheckSignals()
                continue
            if done:
                break
            raise os_error(failure)
        if moved == 0:
            break
        done += moved
    return done
