"""Blocking transfers between a file and the pieces of a stream."""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from posix.uio cimport iovec, preadv, pwritev

from vuproc.shm.cursor cimport IOV_MAX, Cursor, advance, cut
from vuproc.shm.failures cimport os_error


cdef inline uint64_t transfer(
    iovec *pieces, Cursor *cursor, bint out, int fd, int64_t offset, Py_ssize_t n
) except? 0xffffffffffffffff:
    # Up to `n` bytes at the cursor (-1: all that are left), `out` of them to the file; how many.
    cdef iovec block[IOV_MAX]
    cdef uint64_t wanted, done = 0
    cdef Py_ssize_t moved
    cdef int count, failure
    if n < 0:
        wanted = cursor.left
    else:
        wanted = n
        if wanted > cursor.left:
            raise ValueError(f"{n} bytes wanted of {cursor.left}")
    while done < wanted:
        count = cut(pieces, cursor, wanted - done, block)
        # The kernel copies: guest memory that went away is EFAULT here and no SIGBUS.
        with nogil:
            if out:
                moved = pwritev(fd, block, count, offset + <int64_t>done)
            else:
                moved = preadv(fd, block, count, offset + <int64_t>done)
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
        advance(pieces, cursor, moved)
        done += moved
    return done
