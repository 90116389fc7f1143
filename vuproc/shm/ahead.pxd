"""How far a ring looks ahead: other CPUs' stores for the requests to come are on their way here
while one is served. These are hints: nothing is decided on what is read for them.
"""

from libc.stdint cimport uint32_t

from vuproc.shm.atomics cimport vu_prefetch, vu_prefetch_to_write


cdef enum:
    # Requests between the one that is served and that whose first bytes are fetched, and whose
    # descriptor is.
    AHEAD = 4
    FAR_AHEAD = 12
    LINE = 64                      # bytes that come at once


cdef inline void prefetch_buffer(
    const void *buffer, uint32_t length, bint to_fill
) noexcept nogil:
    # Its first line, or the right to write it; and the second, where a header and what follows it
    # lie across the two. Any address will do: the buffer may be gone by now. NULL: nothing is known.
    cdef const char *first = <const char *>buffer
    cdef bint both = (<size_t>first & (LINE - 1)) + length > LINE
    if first == NULL:
        return
    if to_fill:
        vu_prefetch_to_write(first)
        if both:
            vu_prefetch_to_write(first + LINE)
    else:
        vu_prefetch(first)
        if both:
            vu_prefetch(first + LINE)
