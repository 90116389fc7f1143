"""A place in a stream of bytes that lies in pieces, and what moves it on.

Inline: every verb of a request goes through them. Callers have checked n <= cursor.left.
"""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy
from posix.uio cimport iovec


cdef enum:
    # Pieces that one system call takes (Linux UIO_MAXIOV).
    IOV_MAX = 1024
    # What memory and lengths must be a multiple of for O_DIRECT to be tried.
    DIRECT_ALIGNMENT = 512


cdef struct Cursor:
    uint32_t piece
    uint64_t within                # bytes of that piece passed already
    uint64_t left                  # bytes up to the end of the area


cdef inline void advance(iovec *pieces, Cursor *cursor, uint64_t n) noexcept nogil:
    # n <= cursor.left, so the walk ends inside the area.
    cdef uint64_t here
    cursor.left -= n
    while n:
        here = pieces[cursor.piece].iov_len - cursor.within
        if n < here:
            cursor.within += n
            return
        n -= here
        cursor.piece += 1
        cursor.within = 0


cdef inline void copy_out(iovec *pieces, Cursor *cursor, char *to, uint64_t n) noexcept nogil:
    cdef uint64_t here
    cursor.left -= n
    while n:
        here = pieces[cursor.piece].iov_len - cursor.within
        # SAFETY: n <= left was checked by the caller and `here` stays inside one checked piece.
        if n < here:
            memcpy(to, <char *>pieces[cursor.piece].iov_base + cursor.within, n)
            cursor.within += n
            return
        memcpy(to, <char *>pieces[cursor.piece].iov_base + cursor.within, here)
        to += here
        n -= here
        cursor.piece += 1
        cursor.within = 0


cdef inline void copy_in(iovec *pieces, Cursor *cursor, const char *data, uint64_t n) noexcept nogil:
    cdef uint64_t here
    cursor.left -= n
    while n:
        here = pieces[cursor.piece].iov_len - cursor.within
        # SAFETY: n <= left was checked by the caller and `here` stays inside one checked piece.
        if n < here:
            memcpy(<char *>pieces[cursor.piece].iov_base + cursor.within, data, n)
            cursor.within += n
            return
        memcpy(<char *>pieces[cursor.piece].iov_base + cursor.within, data, here)
        data += here
        n -= here
        cursor.piece += 1
        cursor.within = 0


cdef inline int cut(iovec *pieces, const Cursor *cursor, uint64_t n, iovec *out) noexcept nogil:
    # The next n bytes (n <= left), or as many as IOV_MAX pieces have; empty ones are left out.
    cdef uint32_t piece = cursor.piece
    cdef uint64_t within = cursor.within, here
    cdef int count = 0
    while n and count < IOV_MAX:
        here = pieces[piece].iov_len - within
        if here > n:
            here = n
        if here:
            out[count].iov_base = <char *>pieces[piece].iov_base + within
            out[count].iov_len = here
            count += 1
        n -= here
        piece += 1
        within = 0
    return count


cdef inline bint aligned(const iovec *pieces, int count) noexcept nogil:
    cdef uintptr_t bits = 0
    cdef int i
    for i in range(count):
        bits |= <uintptr_t>pieces[i].iov_base | pieces[i].iov_len
    return count < IOV_MAX and bits % DIRECT_ALIGNMENT == 0
