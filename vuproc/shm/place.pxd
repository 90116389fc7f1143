"""Places in a packed ring: a slot in bits 0 to 14 and its wrap counter in bit 15.

That is how SET_VRING_BASE and the event areas have them (virtio 1.3, 2.8). A slot's flags say whose
it is: available if AVAIL is the wrap counter and USED is not, used if both are.
"""

from libc.stdint cimport uint16_t, uint32_t


cdef enum:
    SLOT_MASK = 0x7fff
    WRAP_SHIFT = 15
    FIRST_PLACE = 0x8000           # of a fresh ring: wrap counters begin with 1
    F_AVAIL = 1 << 7
    F_USED = 1 << 15


cdef inline uint16_t slot_of(uint16_t place) noexcept nogil:
    return place & SLOT_MASK


cdef inline uint16_t advanced(uint16_t place, uint32_t by, uint32_t size) noexcept nogil:
    # `by` slots further on in a ring of `size`, by <= size.
    cdef uint32_t slot = (place & SLOT_MASK) + by
    cdef uint16_t wrap = place >> WRAP_SHIFT
    if slot >= size:
        slot -= size
        wrap ^= 1
    return <uint16_t>(slot | wrap << WRAP_SHIFT)


cdef inline uint16_t gone_back(uint16_t place, uint32_t by, uint32_t size) noexcept nogil:
    cdef uint32_t slot = place & SLOT_MASK
    cdef uint16_t wrap = place >> WRAP_SHIFT
    if slot < by:
        slot += size
        wrap ^= 1
    return <uint16_t>((slot - by) | wrap << WRAP_SHIFT)


cdef inline uint32_t slots_between(uint16_t first, uint16_t last, uint32_t size) noexcept nogil:
    # From `first` on to `last`; more than `size` if that is not ahead of it within one round.
    cdef uint32_t a = first & SLOT_MASK, b = last & SLOT_MASK
    if first >> WRAP_SHIFT == last >> WRAP_SHIFT:
        return b - a if b >= a else size + 1
    return size + b - a if b <= a else size + 1


cdef inline uint16_t available_bits(uint16_t place) noexcept nogil:
    return F_AVAIL if place >> WRAP_SHIFT else F_USED


cdef inline uint16_t used_bits(uint16_t place) noexcept nogil:
    return F_AVAIL | F_USED if place >> WRAP_SHIFT else 0


cdef inline bint is_available(uint16_t flags, uint16_t place) noexcept nogil:
    return flags & (F_AVAIL | F_USED) == available_bits(place)


cdef inline bint is_used(uint16_t flags, uint16_t place) noexcept nogil:
    return flags & (F_AVAIL | F_USED) == used_bits(place)
