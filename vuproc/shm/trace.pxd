"""C interface of one queue's trace: its last requests, in memory that outlives the worker."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from vuproc.shm.atomics cimport (
    vu_load_relaxed64, vu_store_relaxed32, vu_store_relaxed64, vu_store_release64,
)
from vuproc.shm.request cimport Chain


cdef enum:
    FIRST_BYTES = 16               # of what the driver sends: most types have their header there


cdef struct TraceHeader:
    # 64 bytes, native byte order.
    uint64_t room                  # entries that follow; a power of two
    uint64_t next                  # requests begun so far: the next one's is at next % room
    uint64_t worker                # workers that have traced so far; the last of them is at it
    uint64_t reserved[5]


cdef struct TraceEntry:
    # 64 bytes.
    uint64_t order                 # 1 + the number of the request; 0 while the entry is written
    uint64_t began                 # ns, the monotonic clock at the worker's last look before it
    uint64_t ended                 # likewise; 0: not yet
    uint32_t head
    uint32_t worker                # whose it was
    uint32_t readable              # bytes, at most 2^32 - 1
    uint32_t writable
    uint32_t written
    uint32_t again                 # 1: another worker has had it before
    unsigned char first[FIRST_BYTES]


cdef struct Trace:
    # What a ring has of it.
    TraceHeader *header
    TraceEntry *entries
    uint64_t mask
    uint64_t *orders               # by head, of what is in flight; 0: not traced
    uint32_t worker


cdef inline void trace_begun(Trace *trace, Chain *chain, uint64_t now, bint again) noexcept nogil:
    cdef uint64_t order = vu_load_relaxed64(&trace.header.next)
    cdef TraceEntry *entry = trace.entries + (order & trace.mask)
    # One writer. Whoever reads sees by `order`, before and after, that the entry is whole.
    vu_store_release64(&entry.order, 0)
    vu_store_release64(&entry.ended, 0)
    vu_store_relaxed64(&entry.began, now)
    vu_store_relaxed32(&entry.head, chain.head)
    vu_store_relaxed32(&entry.worker, trace.worker)
    vu_store_relaxed32(&entry.readable, <uint32_t>min(chain.readable, <uint64_t>0xffffffff))
    vu_store_relaxed32(&entry.writable, <uint32_t>min(chain.writable, <uint64_t>0xffffffff))
    vu_store_relaxed32(&entry.written, 0)
    vu_store_relaxed32(&entry.again, again)
    if chain.readable_count and chain.pieces[0].iov_len >= FIRST_BYTES:
        # SAFETY: the piece lies inside a mapping, as the walk has checked, and is so long. What is
        # copied is shown to people, and nothing is decided on it.
        memcpy(entry.first, chain.pieces[0].iov_base, FIRST_BYTES)
    else:
        memset(entry.first, 0, FIRST_BYTES)
    vu_store_release64(&entry.order, order + 1)
    vu_store_relaxed64(&trace.header.next, order + 1)
    # SAFETY: a head is below the ring's size, which `orders` has.
    trace.orders[chain.head] = order + 1


cdef inline void trace_ended(
    Trace *trace, uint32_t head, uint32_t written, uint64_t now
) noexcept nogil:
    # SAFETY: as above.
    cdef uint64_t order = trace.orders[head]
    cdef TraceEntry *entry = trace.entries + ((order - 1) & trace.mask)
    if order == 0:
        return
    trace.orders[head] = 0
    if vu_load_relaxed64(&entry.order) == order:
        vu_store_relaxed32(&entry.written, written)
        vu_store_release64(&entry.ended, now)
