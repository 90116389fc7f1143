"""C interface of the driver side of a packed ring."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vuproc.testing.ring cimport DriverRing, Segment


cdef struct PackedDesc:
    uint64_t addr
    uint32_t len
    uint16_t id
    uint16_t flags


cdef struct Place:
    # A descriptor of the ring, and the wrap counter under which it is reached: 0 or 1.
    uint16_t slot
    uint16_t wrap


@cython.final
cdef class PackedDriverRing(DriverRing):
    cdef PackedDesc *_desc
    cdef char *_driver_event       # off_wrap, flags: ours
    cdef char *_device_event       # the same, the device's
    cdef uint16_t *_next_id        # private links of the list of free buffer ids
    cdef uint16_t _free_id
    cdef Place _avail              # where the next descriptor is written
    cdef Place _used               # where the next used descriptor is expected
    cdef Place _held               # where the first descriptor lies that is not published yet
    cdef uint16_t _held_flags      # its flags, which publish it and all that follow
    cdef unsigned int _unpublished # descriptors from there on

    cdef uint16_t take_id(self, unsigned int count) noexcept nogil
    cdef void write_next(
        self, uint64_t addr, uint32_t length, uint16_t id, uint16_t flags
    ) noexcept nogil
    cdef void advance(self, Place *place, unsigned int count) noexcept nogil
    cdef unsigned int distance(self, Place start, Place end) noexcept nogil
    cdef bint is_used(self, Place place) noexcept nogil
    cdef Place _place(self, unsigned int position, str name) except *
