# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What the load generator's requests cost without a ring: the same reads and wake-ups, no device."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from posix.uio cimport iovec, preadv
from posix.unistd cimport read, write

from vuproc.shm.clock cimport clock_ns

from os import strerror

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    short POLLIN


cdef enum:
    TURN = 8192                   # reads between two looks at signals


def read_blocks(int fd, memory, *, size_t arena, job) -> float:
    """Read `job.count` blocks from `fd` into the data areas that the job's load would use, in turn.

    memory, arena: as for LoadGenerator. Places: one after the other or at random, as the job says.
    Returns the seconds it took. Raises OSError; a short read is EIO.
    """
    cdef Py_buffer view
    cdef iovec piece
    cdef uint64_t count = job.count, depth = job.depth, area = job.slot_data
    cdef uint64_t blocks = job.span // job.block_size, start = job.start, block = job.block_size
    cdef uint64_t random = job.seed & 0xffffffffffffffff, place = 0, done = 0, stop, begin
    cdef bint sequential = job.sequential
    cdef int failure = 0
    cdef Py_ssize_t got
    cdef char *data
    PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
    try:
        if arena > <size_t>view.len or job.arena_size > <size_t>view.len - arena:
            raise ValueError(f"arena at {arena:#x} does not fit its memory of {view.len} bytes")
        data = <char *>view.buf + arena
        piece.iov_len = block
        begin = clock_ns()
        while done < count:
            stop = min(count, done + TURN)
            with nogil:
                while done < stop:
                    if sequential:
                        place = done % blocks
                    else:
                        # A 64-bit linear congruential generator (Knuth); its upper bits are random.
                        random = random * 6364136223846793005ULL + 1442695040888963407ULL
                        place = (random >> 33) % blocks
                    # SAFETY: area (done % depth) of the arena that was checked above; it holds a
                    # block.
                    piece.iov_base = data + (done % depth) * area
                    got = preadv(fd, &piece, 1, <int64_t>(start + place * block))
                    if got != <Py_ssize_t>block:
                        failure = errno if got < 0 else -1
                        break
                    done += 1
            if failure == EINTR:
                failure = 0
            elif failure:
                raise OSError(failure, strerror(failure)) if failure > 0 else EOFError("short read")
            PyErr_CheckSignals()
        return (clock_ns() - begin) / 1e9
    finally:
        PyBuffer_Release(&view)


def ring_and_wait(int ours, int theirs, uint64_t count) -> float:
    """Write the eventfd `ours` and sleep until `theirs` is written, `count` times; the seconds."""
    cdef uint64_t value, i, begin = clock_ns()
    cdef int failure = 0
    with nogil:
        for i in range(count):
            value = 1
            if write(ours, &value, 8) != 8 or read(theirs, &value, 8) != 8:
                failure = errno
                break
    if failure:
        raise OSError(failure, strerror(failure))
    return (clock_ns() - begin) / 1e9


def answer(int ours, int theirs, int life) -> None:
    """The other side of `ring_and_wait`, until `life` is readable or closed by its other end."""
    cdef uint64_t value = 1
    cdef int failure = 0
    cdef pollfd[2] wait
    wait[0].fd = ours
    wait[1].fd = life
    wait[0].events = wait[1].events = POLLIN
    with nogil:
        while not failure:
            if poll(wait, 2, -1) < 0:
                failure = errno
            elif wait[1].revents:
                break
            elif read(ours, &value, 8) != 8 or write(theirs, &value, 8) != 8:
                failure = errno
    if failure:
        raise OSError(failure, strerror(failure))


def ignore(request) -> None:
    """A device's `handle` in native code that does nothing."""
