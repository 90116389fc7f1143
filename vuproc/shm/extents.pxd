"""Which bytes of a writable area were written to, out of their order: what the used length counts."""

from libc.stdint cimport uint64_t


cdef enum:
    EXTENTS = 4                    # separate ones that are counted


cdef struct Extent:
    uint64_t start
    uint64_t end


cdef struct Extents:
    Extent extents[EXTENTS]        # disjoint
    int count


cdef inline void note_extent(Extents *known, uint64_t start, uint64_t end) noexcept nogil:
    # Join it with all it touches. One too many is not counted: a used length that is too small is
    # lawful (virtio 1.2, 2.7.8.2), one that is too large shows the driver stale bytes.
    cdef int i = 0
    while i < known.count:
        if start <= known.extents[i].end and known.extents[i].start <= end:
            start = min(start, known.extents[i].start)
            end = max(end, known.extents[i].end)
            known.count -= 1
            known.extents[i] = known.extents[known.count]
            i = 0
        else:
            i += 1
    if known.count < EXTENTS:
        known.extents[known.count].start = start
        known.extents[known.count].end = end
        known.count += 1


cdef inline uint64_t bytes_behind(const Extents *known, uint64_t position) noexcept nogil:
    # Bytes that were written to at `position` or behind it, each once.
    cdef uint64_t total = 0
    cdef int i
    for i in range(known.count):
        if known.extents[i].end > position:
            total += known.extents[i].end - max(known.extents[i].start, position)
    return total
