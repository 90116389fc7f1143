"""A chain of a split ring: descriptors of a table, linked by their `next` (virtio 1.3, 2.7.5).

`head` is below the ring's size, and the table has as many descriptors as the ring has entries.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from vuproc.shm.atomics cimport vu_load_relaxed64
from vuproc.shm.request cimport Chain
from vuproc.shm.ring cimport Descriptor, Ring
from vuproc.shm.walk cimport (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    Walk,
    end_walk,
    take_descriptor,
)


cdef inline int walk_table(
    Ring ring, unsigned char *table, uint16_t head, Chain *chain
) noexcept nogil:
    # Fill `chain` from the descriptors; each is read once and only its copy is used. 0, or -1: it is
    # none, and the ring has the cause, or it waits for translations (`Iotlb`).
    cdef uint32_t entries = <uint32_t>ring.size
    cdef uint32_t index = head
    cdef uint32_t passed = 0
    cdef bint inside = False
    cdef uint64_t rest
    cdef Descriptor one
    cdef Walk walk
    memset(&walk, 0, sizeof(walk))
    while True:
        # SAFETY: index < entries, all of which are inside the mapping (or the private copy).
        # 8-byte loads: the table is aligned to 16.
        one.addr = vu_load_relaxed64(table + 16 * <size_t>index)
        rest = vu_load_relaxed64(table + 16 * <size_t>index + 8)
        one.len = <uint32_t>rest
        one.flags = <uint16_t>(rest >> 32)
        one.next = <uint16_t>(rest >> 48)
        passed += 1
        if passed > entries:
            return ring.fault(b"descriptor chain loops")
        if one.flags & DESC_INDIRECT:
            # 2.7.5.3.2: normal descriptors may stand before an indirect one; WRITE is ignored.
            if not ring.indirect:
                return ring.fault(b"indirect descriptor without the feature")
            if inside:
                return ring.fault(b"indirect descriptor in an indirect table")
            if one.flags & DESC_NEXT:
                return ring.fault(b"indirect descriptor with a next one")
            if ring.copy_table(one.addr, one.len) < 0:
                return -1
            table = <unsigned char *>ring.copied
            entries = one.len >> 4
            inside = True
            index = 0
            chain.descriptors = <uint16_t>passed
            passed = 0
            continue
        if take_descriptor(ring, &walk, head, one.addr, one.len, one.flags & DESC_WRITE) < 0:
            return -1
        if not one.flags & DESC_NEXT:
            break
        if one.next >= entries:
            return ring.fault(b"next descriptor is outside the table")
        index = one.next
    if not inside:
        chain.descriptors = <uint16_t>passed
    return end_walk(ring, &walk, chain)
