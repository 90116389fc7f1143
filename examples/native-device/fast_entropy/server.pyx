# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Fills the writable pieces of each request with random bytes."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from vuproc.shm.native cimport NativeDevice
from vuproc.shm.request cimport Chain

cdef extern from "<sys/random.h>" nogil:
    Py_ssize_t getrandom(void *to, size_t n, unsigned int flags)


cdef class Server(NativeDevice):
    """One queue's server. `seed` 0: the kernel's bytes."""

    cdef uint64_t state

    def __cinit__(self, uint64_t seed):
        self.state = seed

    cdef int64_t serve(self, Chain *chain) noexcept nogil:
        cdef int64_t written = 0
        cdef Py_ssize_t got
        cdef uint32_t i
        for i in range(chain.readable_count, chain.readable_count + chain.writable_count):
            got = self.fill(<unsigned char *>chain.pieces[i].iov_base, chain.pieces[i].iov_len)
            written += got
            if got < <Py_ssize_t>chain.pieces[i].iov_len:
                break
        return written

    cdef Py_ssize_t fill(self, unsigned char *to, size_t n) noexcept nogil:
        cdef size_t done = 0, here
        cdef uint64_t word
        cdef Py_ssize_t got
        while done < n:
            if self.state:
                word = self.next_word()
                here = min(n - done, sizeof(word))
                memcpy(to + done, &word, here)
                done += here
                continue
            got = getrandom(to + done, n - done, 0)
            if got >= 0:
                done += got
            elif errno != EINTR:
                self.fail(errno)
                break
        return done

    cdef uint64_t next_word(self) noexcept nogil:
        # splitmix64 (Steele, Lea and Flood, 2014).
        cdef uint64_t z
        self.state += 0x9E3779B97F4A7C15ULL
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL
        return z ^ (z >> 31)
