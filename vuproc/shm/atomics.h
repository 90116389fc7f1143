/* Single accesses to memory that other processes write at the same time, as compiler builtins.
 *
 * Each access is one instruction of the named width (the address must be aligned to it), so a
 * concurrent reader never sees half a value. Relaxed orders nothing; acquire and release pair with
 * the other side's barriers; the full fence orders a store before a later load, which neither does.
 * Plain mov on x86-64; ldar, stlr and dmb on aarch64.
 *
 * vu_note is for a reader who comes after this process's death: one that is killed has executed a
 * prefix of its instructions, so that only the compiler must be made to keep the order.
 */
#ifndef VUPROC_ATOMICS_H
#define VUPROC_ATOMICS_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "rings of VIRTIO_F_VERSION_1 are little-endian; a big-endian host needs byte swaps here"
#endif

#ifdef VUPROC_CRASH_POINTS
#include "crash_points.h"
#else
/* Where a process may die for the sake of a test: before each store below. */
#define vu_crash_point() ((void)0)
#endif

#define VU_ACCESS(BITS)                                                                            \
    static inline uint##BITS##_t vu_load_relaxed##BITS(const void *where)                          \
    {                                                                                              \
        return __atomic_load_n((const uint##BITS##_t *)where, __ATOMIC_RELAXED);                   \
    }                                                                                              \
    static inline uint##BITS##_t vu_load_acquire##BITS(const void *where)                          \
    {                                                                                              \
        return __atomic_load_n((const uint##BITS##_t *)where, __ATOMIC_ACQUIRE);                   \
    }                                                                                              \
    static inline void vu_store_relaxed##BITS(void *where, uint##BITS##_t value)                   \
    {                                                                                              \
        vu_crash_point();                                                                          \
        __atomic_store_n((uint##BITS##_t *)where, value, __ATOMIC_RELAXED);                        \
    }                                                                                              \
    static inline void vu_store_release##BITS(void *where, uint##BITS##_t value)                   \
    {                                                                                              \
        vu_crash_point();                                                                          \
        __atomic_store_n((uint##BITS##_t *)where, value, __ATOMIC_RELEASE);                        \
    }                                                                                              \
    static inline void vu_note##BITS(void *where, uint##BITS##_t value)                            \
    {                                                                                              \
        vu_crash_point();                                                                          \
        __atomic_signal_fence(__ATOMIC_SEQ_CST);                                                   \
        __atomic_store_n((uint##BITS##_t *)where, value, __ATOMIC_RELAXED);                        \
        __atomic_signal_fence(__ATOMIC_SEQ_CST);                                                   \
    }

/* The processor's own count, to see whether it is time for a look at the clock, which costs more.
 * 4096 of it are a microsecond or two on any x86. Elsewhere there is none that is as cheap and as
 * fine, and it is always time. What it says is never taken for a time: it may differ from CPU to
 * CPU, and change with the machine.
 */
#ifdef __x86_64__
static inline uint64_t vu_cycles(void)
{
    return __builtin_ia32_rdtsc();
}
static inline int vu_is_soon(uint64_t cycles, uint64_t before)
{
    return cycles - before < 4096;
}
#else
static inline uint64_t vu_cycles(void)
{
    return 0;
}
static inline int vu_is_soon(uint64_t cycles, uint64_t before)
{
    (void)cycles;
    (void)before;
    return 0;
}
#endif

VU_ACCESS(8)
VU_ACCESS(16)
VU_ACCESS(32)
VU_ACCESS(64)

#undef VU_ACCESS

/* Sequentially consistent, so also a full fence: what was stored before is visible to whoever takes
 * the bits away afterwards. */
static inline uint8_t vu_or8(void *where, uint8_t bits)
{
    vu_crash_point();
    return __atomic_fetch_or((uint8_t *)where, bits, __ATOMIC_SEQ_CST);
}

/* Stores `wanted` where `before` still is; whether it was. It orders nothing. */
static inline int vu_swap_if64(void *where, uint64_t before, uint64_t wanted)
{
    vu_crash_point();
    return __atomic_compare_exchange_n((uint64_t *)where, &before, wanted, 0, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}

static inline void vu_fence_full(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* A hint: the line is wanted soon. Any address will do. */
static inline void vu_prefetch(const void *where)
{
    __builtin_prefetch(where);
}

static inline void vu_prefetch_to_write(const void *where)
{
#ifdef __x86_64__
    /* The compiler's own is a plain prefetch unless it may count on this one, which every processor
     * of this architecture takes, be it as nothing to do. */
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)where));
#else
    __builtin_prefetch(where, 1);
#endif
}

/* For a loop that waits for another CPU's store. */
static inline void vu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The compiler may not move memory accesses over this, nor read again after it what was copied
 * before it. No instruction. */
static inline void vu_compiler_barrier(void)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

#endif
