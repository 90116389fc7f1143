"""A chain of descriptors becomes pieces of host memory, whatever the layout of the ring.

A ring reads each descriptor once, hands its words to `take_descriptor`, and ends with `end_walk`.
Both are inline: they run for each descriptor of each request.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from vuproc.shm.atomics cimport vu_compiler_barrier
from vuproc.shm.fetching cimport find_near, find_pieces
from vuproc.shm.memory cimport NO_ROOM
from vuproc.shm.request cimport Chain
from vuproc.shm.ring cimport Descriptor, Ring


cdef enum:
    DESC_NEXT = 1
    DESC_WRITE = 2
    DESC_INDIRECT = 4

    # virtio 1.3, 2.7.5: a chain holds no more than 2^32 bytes.
    BYTES_SHIFT = 32


cdef struct Walk:
    # What the descriptors so far add up to. Zero it before the first.
    uint32_t total                 # descriptors
    uint32_t count                 # pieces
    uint32_t readable_count        # of them; set with the first writable descriptor
    bint writing
    uint64_t readable              # bytes
    uint64_t writable


cdef inline bint find_first(
    Ring ring, uint64_t addr, uint32_t length, bint indirect, iovec *first
) noexcept nogil:
    # The first buffer of a chain that begins with such a descriptor, for a hint: if it is in reach
    # and not empty. What a table says is read once more when the chain is walked.
    cdef Descriptor one
    if not indirect:
        return find_near(ring, addr, length, first)
    if not ring.indirect or not find_near(ring, addr, sizeof(Descriptor), first):
        return False
    # SAFETY: so many bytes were found. A copy, since a table may lie at any address.
    memcpy(&one, first.iov_base, sizeof(Descriptor))
    vu_compiler_barrier()
    return find_near(ring, one.addr, one.len, first)


cdef inline int take_descriptor(
    Ring ring, Walk *walk, uint16_t head, uint64_t addr, uint32_t length, bint write
) noexcept nogil:
    # The next descriptor of the chain of `head`; -1 if there must be none like it.
    cdef int made
    walk.total += 1
    if walk.total > ring.limit:
        return ring.fault(b"descriptor chain is too long")
    if write:
        if not walk.writing:
            walk.writing = True
            walk.readable_count = walk.count
        walk.writable += length
        if ring.buffers != NULL:
            ring.note_writable(head, addr, length)
    elif walk.writing:
        return ring.fault(b"device-readable descriptor after a device-writable one")
    else:
        walk.readable += length
    if walk.readable + walk.writable > <uint64_t>1 << BYTES_SHIFT:
        return ring.fault(b"descriptor chain of more than 2^32 bytes")
    if length == 0:
        # An empty piece, wherever it points to. `pieces` is a pointer that is not NULL.
        if walk.count == <uint32_t>ring.piece_room:
            return ring.fault(b"buffers in too many pieces")
        ring.pieces[walk.count].iov_base = ring.pieces
        ring.pieces[walk.count].iov_len = 0
        walk.count += 1
        return 0
    made = find_pieces(
        ring, addr, length, ring.pieces + walk.count, ring.piece_room - <int>walk.count
    )
    if made == NO_ROOM:
        return ring.fault(b"buffers in too many pieces")
    if made < 0:
        made = ring.look_up(
            head, addr, length, write, ring.pieces + walk.count,
            ring.piece_room - <int>walk.count,
        )
        if made < 0:
            return -1
    walk.count += made
    return 0


cdef inline int end_walk(Ring ring, const Walk *walk, Chain *chain) noexcept nogil:
    # `chain` but for its head, its queue and its number of descriptors; -1 if it waits for
    # translations.
    cdef uint32_t readable_count = walk.readable_count if walk.writing else walk.count
    chain.pieces = ring.pieces
    chain.readable_count = readable_count
    chain.writable_count = walk.count - readable_count
    chain.readable = walk.readable
    # Not both in one load: they were just stored one by one, and it would wait for both stores.
    vu_compiler_barrier()
    chain.writable = walk.writable
    return -1 if ring.missed else 0
