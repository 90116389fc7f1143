"""Single accesses to memory that other processes write at the same time."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "atomics.h" nogil:
    uint16_t vu_load_relaxed16(const void *where)
    uint16_t vu_load_acquire16(const void *where)
    void vu_store_relaxed16(void *where, uint16_t value)
    void vu_store_release16(void *where, uint16_t value)
    uint32_t vu_load_relaxed32(const void *where)
    void vu_store_relaxed32(void *where, uint32_t value)
    uint64_t vu_load_relaxed64(const void *where)
    uint64_t vu_load_acquire64(const void *where)
    void vu_store_relaxed64(void *where, uint64_t value)
    void vu_store_release64(void *where, uint64_t value)
    uint8_t vu_load_relaxed8(const void *where)
    void vu_store_relaxed8(void *where, uint8_t value)
    void vu_note8(void *where, uint8_t value)
    void vu_note16(void *where, uint16_t value)
    void vu_note32(void *where, uint32_t value)
    void vu_note64(void *where, uint64_t value)
    uint8_t vu_or8(void *where, uint8_t bits)
    bint vu_swap_if64(void *where, uint64_t before, uint64_t wanted)
    void vu_fence_full()
    void vu_pause()
    void vu_prefetch(const void *where)
    void vu_prefetch_to_write(const void *where)
    void vu_compiler_barrier()
    uint64_t vu_cycles()
    bint vu_is_soon(uint64_t cycles, uint64_t before)
