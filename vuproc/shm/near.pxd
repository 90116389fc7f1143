"""A chain as most are, in as few instructions as it can be: its buffers lie where one of the last
two did, none is empty, and nobody has to know of them (`buffers` is NULL).

Whatever is different, or no chain at all, is left to walk.pxd, which begins anew: nothing has been
decided by what was read before. Each descriptor is read once by either.
"""

from libc.stdint cimport uint32_t, uint64_t
from posix.uio cimport iovec

from vuproc.shm.fetching cimport find_near
from vuproc.shm.request cimport Chain
from vuproc.shm.ring cimport Ring
from vuproc.shm.walk cimport BYTES_SHIFT, DESC_INDIRECT, DESC_WRITE


cdef struct Near:
    iovec *piece                   # of the next descriptor
    iovec *stop                    # there is no room for more
    iovec *writable                # the first that is; NULL: none yet
    uint64_t total                 # bytes
    uint64_t readable              # of them, once there is a writable one


cdef inline Near begin_near(Ring ring, uint32_t most) noexcept nogil:
    # most: descriptors, at most as many as a chain may have.
    cdef Near near
    near.piece = ring.pieces
    near.stop = ring.pieces + min(most, ring.limit)
    near.writable = NULL
    near.total = near.readable = 0
    return near


cdef inline bint take_near(
    Ring ring, Near *near, uint64_t addr, uint32_t length, uint32_t flags
) noexcept nogil:
    # The next descriptor of the chain; False: it is not like that.
    # SAFETY: there is room for as many as a chain may have descriptors.
    if near.piece == near.stop or not find_near(ring, addr, length, near.piece):
        return False
    if flags & (DESC_WRITE | DESC_INDIRECT):
        if flags & DESC_INDIRECT:
            return False
        if near.writable == NULL:
            near.writable = near.piece
            near.readable = near.total
    elif near.writable != NULL:
        return False
    near.piece += 1
    near.total += length
    return True


cdef inline bint end_near(Ring ring, const Near *near, Chain *chain) noexcept nogil:
    # `chain` but for its head, its queue and its number of descriptors.
    cdef uint32_t count = <uint32_t>(near.piece - ring.pieces), before = count
    cdef uint64_t readable = near.total
    if near.total > <uint64_t>1 << BYTES_SHIFT:
        return False
    if near.writable != NULL:
        before = <uint32_t>(near.writable - ring.pieces)
        readable = near.readable
    chain.pieces = ring.pieces
    chain.readable_count = before
    chain.writable_count = count - before
    chain.readable = readable
    chain.writable = near.total - readable
    return True
