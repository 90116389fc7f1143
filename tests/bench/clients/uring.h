/* As much of io_uring, by its system calls, as it takes to keep blocks in flight on one file. */
#ifndef BENCH_URING_H
#define BENCH_URING_H

#include <linux/io_uring.h>
#include <sys/syscall.h>

struct uring {
    int fd;
    unsigned depth, waiting, free_count;
    unsigned *tail, mask, *heads, *completed_tail, completed_mask;
    unsigned *places;
    struct io_uring_sqe *entries;
    struct io_uring_cqe *results;
    void *rings;
    size_t rings_size, entries_size;
    uint64_t *free_slots;
};

static inline void uring_open(struct uring *ring, unsigned depth)
{
    struct io_uring_params set = {0};
    memset(ring, 0, sizeof *ring);
    ring->depth = depth;
    ring->fd = (int)syscall(SYS_io_uring_setup, depth, &set);
    if (ring->fd < 0)
        die("io_uring: %s", strerror(errno));
    size_t asked = set.sq_off.array + set.sq_entries * sizeof(unsigned);
    size_t done = set.cq_off.cqes + set.cq_entries * sizeof(struct io_uring_cqe);
    ring->rings_size = asked > done ? asked : done;
    ring->entries_size = set.sq_entries * sizeof(struct io_uring_sqe);
    /* One mapping holds both rings since Linux 5.4 (IORING_FEAT_SINGLE_MMAP). */
    ring->rings = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
                       IORING_OFF_SQ_RING);
    ring->entries = mmap(NULL, ring->entries_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
                         IORING_OFF_SQES);
    if (ring->rings == MAP_FAILED || ring->entries == MAP_FAILED)
        die("io_uring's rings: %s", strerror(errno));
    char *base = ring->rings;
    ring->tail = (unsigned *)(base + set.sq_off.tail);
    ring->mask = *(unsigned *)(base + set.sq_off.ring_mask);
    ring->places = (unsigned *)(base + set.sq_off.array);
    ring->heads = (unsigned *)(base + set.cq_off.head);
    ring->completed_tail = (unsigned *)(base + set.cq_off.tail);
    ring->completed_mask = *(unsigned *)(base + set.cq_off.ring_mask);
    ring->results = (struct io_uring_cqe *)(base + set.cq_off.cqes);
    ring->free_slots = calloc(depth, sizeof *ring->free_slots);
}

static inline void uring_put(struct uring *ring, int file, int writes, char *buffer,
                             uint64_t size, uint64_t offset, uint64_t slot)
{
    unsigned tail = *ring->tail, at = tail & ring->mask;
    struct io_uring_sqe *entry = &ring->entries[at];
    memset(entry, 0, sizeof *entry);
    entry->opcode = writes ? IORING_OP_WRITE : IORING_OP_READ;
    entry->fd = file;
    entry->addr = (uint64_t)(uintptr_t)buffer;
    entry->len = (uint32_t)size;
    entry->off = offset;
    entry->user_data = slot;
    ring->places[at] = at;
    /* Pairs with the kernel's acquire of the tail. */
    __atomic_store_n(ring->tail, tail + 1, __ATOMIC_RELEASE);
    ring->waiting++;
}

/* Send what was put and wait for one completion at least. */
static inline void uring_enter(struct uring *ring)
{
    while (syscall(SYS_io_uring_enter, ring->fd, ring->waiting, 1, IORING_ENTER_GETEVENTS, NULL,
                   0) < 0)
        if (errno != EINTR)
            die("io_uring_enter: %s", strerror(errno));
    ring->waiting = 0;
}

static inline int uring_take(struct uring *ring, uint64_t *slot, int32_t *result)
{
    unsigned head = *ring->heads;
    /* Pairs with the kernel's release of the tail. */
    if (head == __atomic_load_n(ring->completed_tail, __ATOMIC_ACQUIRE))
        return 0;
    struct io_uring_cqe *done = &ring->results[head & ring->completed_mask];
    *slot = done->user_data;
    *result = done->res;
    ring->free_slots[ring->free_count++] = *slot;
    __atomic_store_n(ring->heads, head + 1, __ATOMIC_RELEASE);
    return 1;
}

/* A slot whose request was taken back. */
static inline uint64_t uring_free(struct uring *ring)
{
    return ring->free_slots[--ring->free_count];
}

static inline void uring_close(struct uring *ring)
{
    munmap(ring->entries, ring->entries_size);
    munmap(ring->rings, ring->rings_size);
    free(ring->free_slots);
    close(ring->fd);
}

#endif
