# cython: language_level=3
"""What the load generator's requests hold: a content which depends on a pattern and a place alone.

All sizes of words are in words of 8 bytes, all others in bytes. Whoever calls has checked that the
areas are as long as that.
"""

from libc.stdint cimport uint8_t, uint64_t


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """One step of splitmix64 (public domain, Steele and others): a well mixed function of x."""
    x += <uint64_t>0x9e3779b97f4a7c15ULL
    x = (x ^ (x >> 30)) * <uint64_t>0xbf58476d1ce4e5b9ULL
    x = (x ^ (x >> 27)) * <uint64_t>0x94d049bb133111ebULL
    return x ^ (x >> 31)


cdef inline uint64_t word_at(uint64_t pattern, uint64_t sector, uint64_t i) noexcept nogil:
    """Word `i` from `sector` on: blocks of any size agree on it."""
    return (pattern + (sector * 64 + i)) * <uint64_t>0x9e3779b97f4a7c15ULL


cdef inline void fill_words(
    uint64_t *words, uint64_t count, uint64_t pattern, uint64_t sector
) noexcept nogil:
    """Write the content of the block at `sector`."""
    cdef uint64_t i
    for i in range(count):
        words[i] = word_at(pattern, sector, i)


cdef inline bint holds_words(
    const uint64_t *words, uint64_t count, uint64_t pattern, uint64_t sector
) noexcept nogil:
    """Whether this is the content of the block at `sector`."""
    cdef uint64_t i, wrong = 0
    for i in range(count):
        wrong |= words[i] ^ word_at(pattern, sector, i)
    return wrong == 0


cdef inline uint8_t byte_at(uint64_t seed, uint64_t i) noexcept nogil:
    """Byte `i` of the request whose `seed` is mixed of pattern and number."""
    return <uint8_t>(word_at(seed, 0, i >> 3) >> (8 * (i & 7)))


cdef inline void fill_bytes(
    uint8_t *into, uint64_t size, uint64_t pattern, uint64_t number
) noexcept nogil:
    """Write the content of request `number`."""
    cdef uint64_t i, seed = mix(pattern ^ number)
    for i in range(size):
        into[i] = byte_at(seed, i)


cdef inline void fill_complement(
    uint8_t *into, uint64_t size, uint64_t pattern, uint64_t number
) noexcept nogil:
    """Write what differs from the content of request `number` in every byte."""
    cdef uint64_t i, seed = mix(pattern ^ number)
    for i in range(size):
        into[i] = <uint8_t>(byte_at(seed, i) ^ 0xff)


cdef inline bint holds_bytes(
    const uint8_t *there, uint64_t size, uint64_t pattern, uint64_t number
) noexcept nogil:
    """Whether this is the content of request `number`."""
    cdef uint64_t i, seed = mix(pattern ^ number)
    cdef uint8_t wrong = 0
    for i in range(size):
        wrong |= there[i] ^ byte_at(seed, i)
    return wrong == 0
