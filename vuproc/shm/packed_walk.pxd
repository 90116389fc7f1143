"""A chain of a packed ring: slots one after the other, and their copies in the record.

Each answers 0 or, for `walk_copies`, 1; -1: it is no chain, and the ring has the cause, or it waits
for translations (`Iotlb`).
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.uio cimport iovec

from vuproc.shm.atomics cimport vu_load_relaxed64
from vuproc.shm.fetching cimport find_near
from vuproc.shm.near cimport Near, begin_near, end_near, take_near
from vuproc.shm.packed_fetching cimport PackedFetching, slot_at
from vuproc.shm.packed_record cimport PackedEntry, Slot, note_descriptor
from vuproc.shm.request cimport Chain
from vuproc.shm.ring cimport Descriptor
from vuproc.shm.walk cimport (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    Walk,
    end_walk,
    take_descriptor,
)


cdef inline int take_table(
    PackedFetching ring, Walk *walk, uint16_t head, uint64_t addr, uint32_t length
) noexcept nogil:
    # 2.8.7: one descriptor after the other, of whose flags only WRITE matters.
    cdef uint32_t i
    cdef Descriptor *one
    if ring.copy_table(addr, length) < 0:
        return -1
    for i in range(length >> 4):
        # SAFETY: `copy_table` has copied so many.
        one = ring.copied + i
        if one.next & DESC_INDIRECT:
            return ring.fault(b"indirect descriptor in an indirect table")
        if take_descriptor(ring, walk, head, one.addr, one.len, one.next & DESC_WRITE) < 0:
            return -1
    return 0


cdef inline int take_one(
    PackedFetching ring, Walk *walk, uint16_t head, uint64_t addr, uint32_t length, uint16_t flags
) noexcept nogil:
    if flags & DESC_INDIRECT:
        # 2.8.7: WRITE is ignored.
        if not ring.indirect:
            return ring.fault(b"indirect descriptor without the feature")
        if flags & DESC_NEXT:
            return ring.fault(b"indirect descriptor with a next one")
        return take_table(ring, walk, head, addr, length)
    return take_descriptor(ring, walk, head, addr, length, flags & DESC_WRITE)


cdef struct Taken:
    # What was walked through, from the ring's first free entry on.
    uint16_t last                  # the entry of its last descriptor
    uint16_t count                 # slots
    uint64_t rest                  # the second half of the last descriptor: it names the buffer


cdef inline bint walk_near_slots(
    PackedFetching ring, uint64_t rest, Chain *chain, Taken *taken
) noexcept nogil:
    # As `walk_slots`, of what near.pxd is for. False of anything else.
    cdef size_t entry = ring.free
    cdef uint64_t addr
    cdef unsigned char *at = slot_at(ring, ring.avail)
    cdef unsigned char *end = ring.desc + 16 * <size_t>ring.size
    cdef PackedEntry *entries = ring.entries
    cdef Slot *slots = ring.slots
    cdef Near near = begin_near(ring, ring.room)
    while True:
        # SAFETY: `at` goes round in the ring, whose extent `bind` checked.
        addr = vu_load_relaxed64(at)
        if not take_near(ring, &near, addr, <uint32_t>rest, <uint32_t>(rest >> 48)):
            return False
        # SAFETY: there are as many free entries as there is room.
        note_descriptor(entries + entry, addr, rest)
        if not rest & <uint64_t>DESC_NEXT << 48:
            break
        # Behind the last free entry: none, and then there is no room left.
        entry = slots[entry].next
        at += 16
        if at == end:
            at = ring.desc
        rest = vu_load_relaxed64(at + 8)
    taken.last = <uint16_t>entry
    taken.count = <uint16_t>(near.piece - ring.pieces)
    taken.rest = rest
    return end_near(ring, &near, chain)


cdef inline bint walk_near_table(PackedFetching ring, uint64_t rest, Chain *chain) noexcept nogil:
    # Likewise, of one descriptor that is a table's. The table is read where it is, as it lies in
    # one piece; none that lies at an odd place, whose words are no single accesses.
    cdef uint64_t addr = vu_load_relaxed64(slot_at(ring, ring.avail)), word
    cdef uint32_t length = <uint32_t>rest
    cdef iovec table
    cdef unsigned char *at
    cdef unsigned char *end
    cdef Near near = begin_near(ring, ring.limit)
    if (
        not ring.indirect
        or rest & <uint64_t>DESC_NEXT << 48
        or ring.room == 0
        or length & 15
        or not find_near(ring, addr, length, &table)
    ):
        return False
    # SAFETY: the whole table is inside its region.
    at = <unsigned char *>table.iov_base
    end = at + length
    if <uintptr_t>at & 7:
        return False
    while at != end:
        word = vu_load_relaxed64(at + 8)
        # Of the flags only WRITE matters, and INDIRECT, which must not be.
        if not take_near(
            ring, &near, vu_load_relaxed64(at), <uint32_t>word, <uint32_t>(word >> 48)
        ):
            return False
        at += 16
    # SAFETY: there is a free entry as there is room.
    note_descriptor(ring.entries + ring.free, addr, rest)
    return end_near(ring, &near, chain)


cdef inline int walk_slots(
    PackedFetching ring, uint64_t rest, Chain *chain, Taken *taken
) noexcept nogil:
    # Fill `chain` and the free entries. Each descriptor is read once, and only its
    # copy is used; `rest` is the second half of the first, by whose flags it was found.
    cdef uint16_t head = ring.free, entry = head, flags
    cdef uint32_t count = 0, room = ring.room, length
    cdef uint64_t addr
    cdef unsigned char *at = slot_at(ring, ring.avail)
    cdef unsigned char *end = ring.desc + 16 * <size_t>ring.size
    cdef PackedEntry *entries = ring.entries
    cdef Slot *slots = ring.slots
    cdef Walk walk
    memset(&walk, 0, sizeof(walk))
    while True:
        if count == room:
            ring.fault(b"more descriptors available than the ring has free")
            return -1
        # SAFETY: `at` goes round in the ring, whose extent `bind` checked.
        addr = vu_load_relaxed64(at)
        if count:
            rest = vu_load_relaxed64(at + 8)
        length = <uint32_t>rest
        flags = <uint16_t>(rest >> 48)
        count += 1
        # SAFETY: there are as many free entries as there is room.
        note_descriptor(entries + entry, addr, rest)
        if take_one(ring, &walk, head, addr, length, flags) < 0:
            return -1
        if not flags & DESC_NEXT:
            break
        if count < room:
            entry = slots[entry].next
        at += 16
        if at == end:
            at = ring.desc
    taken.last = entry
    taken.count = <uint16_t>count
    taken.rest = rest
    return end_walk(ring, &walk, chain)


cdef inline int walk_copies(PackedFetching ring, uint16_t head, Chain *chain) noexcept nogil:
    # From the copies: the ring's own may be overwritten. They may be the front-end's memory, so
    # they are read once, too.
    cdef uint16_t entry = head
    cdef uint32_t i
    cdef uint64_t rest
    cdef Walk walk
    if ring.buffers != NULL:
        ring.drop_buffers(head)
    memset(&walk, 0, sizeof(walk))
    for i in range(ring.slots[head].num):
        # SAFETY: the entries of a request in flight are linked inside the record.
        rest = vu_load_relaxed64(&ring.entries[entry].id)
        if take_one(
            ring,
            &walk,
            head,
            vu_load_relaxed64(&ring.entries[entry].addr),
            <uint32_t>(rest >> 32),
            # What follows is a matter of our count.
            <uint16_t>(rest >> 16) & ~DESC_NEXT,
        ) < 0:
            return -1
        entry = ring.slots[entry].next
    chain.head = head
    chain.descriptors = ring.slots[head].num
    return -1 if end_walk(ring, &walk, chain) < 0 else 1
