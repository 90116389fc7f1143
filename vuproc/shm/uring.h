/* io_uring by its system calls: what liburing would give, without the dependency.
 *
 * Of the kernel's interface only what Linux 5.6 has is required; later flags are tried and left out
 * where they are refused. Built against headers without io_uring, the set-up answers ENOSYS.
 */
#ifndef VUPROC_URING_H
#define VUPROC_URING_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif
#endif

/* The operations of ours, by the number that the kernel has for them. */
enum { VU_READV = 1, VU_WRITEV = 2, VU_FSYNC = 3, VU_READ = 22, VU_WRITE = 23 };
enum { VU_FSYNC_DATA = 1 };
enum { VU_ENTER_GETEVENTS = 1 };

#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif

/* What later headers call by these names. */
#define VU_SETUP_COOP_TASKRUN (1U << 8)
#define VU_SETUP_TASKRUN_FLAG (1U << 9)
#define VU_SQ_CQ_OVERFLOW (1U << 1)
#define VU_SQ_TASKRUN (1U << 2)
#define VU_FEAT_SINGLE_MMAP (1U << 0)
#define VU_FEAT_NODROP (1U << 1)
#define VU_FEAT_SUBMIT_STABLE (1U << 2)
#define VU_FEAT_RW_CUR_POS (1U << 3)
#define VU_FEATURES                                                                                \
    (VU_FEAT_SINGLE_MMAP | VU_FEAT_NODROP | VU_FEAT_SUBMIT_STABLE | VU_FEAT_RW_CUR_POS)

struct vu_uring {
    int fd;
    unsigned sq_entries, cq_entries, sq_mask, cq_mask;
    unsigned tail;                 /* of the submission queue, ahead of what the kernel was shown */
    unsigned head;                 /* of the completion queue */
    unsigned *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail;
    void *sqes, *cqes, *rings;
    size_t rings_bytes, sqes_bytes;
};

static inline int vu_uring_fd(const struct vu_uring *ring)
{
    return ring->fd;
}

/* The kernel goes on with what is in flight: nothing may be. */
static inline void vu_uring_end(struct vu_uring *ring)
{
    if (ring == NULL)
        return;
    if (ring->rings != NULL)
        munmap(ring->rings, ring->rings_bytes);
    if (ring->sqes != NULL)
        munmap(ring->sqes, ring->sqes_bytes);
    if (ring->fd >= 0)
        close(ring->fd);
    free(ring);
}

#ifdef IORING_SETUP_CLAMP

static inline int vu_uring_try(struct vu_uring *ring, unsigned sq, unsigned cq,
                                      unsigned flags)
{
    struct io_uring_params params;
    size_t sq_bytes, cq_bytes;
    char *rings;
    unsigned *array;
    unsigned i;
    memset(&params, 0, sizeof(params));
    params.flags = IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE | flags;
    params.cq_entries = cq;
    ring->fd = (int)syscall(__NR_io_uring_setup, sq, &params);
    if (ring->fd < 0)
        return -errno;
    if ((params.features & VU_FEATURES) != VU_FEATURES)
        return -EOPNOTSUPP;
    sq_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    ring->rings_bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
    ring->sqes_bytes = params.sq_entries * sizeof(struct io_uring_sqe);
    rings = mmap(NULL, ring->rings_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
                 IORING_OFF_SQ_RING);
    if (rings == MAP_FAILED)
        return -errno;
    ring->rings = rings;
    ring->sqes = mmap(NULL, ring->sqes_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
                      IORING_OFF_SQES);
    if (ring->sqes == MAP_FAILED) {
        ring->sqes = NULL;
        return -errno;
    }
    ring->sq_entries = params.sq_entries;
    ring->cq_entries = params.cq_entries;
    ring->sq_mask = params.sq_entries - 1;
    ring->cq_mask = params.cq_entries - 1;
    ring->sq_head = (unsigned *)(rings + params.sq_off.head);
    ring->sq_tail = (unsigned *)(rings + params.sq_off.tail);
    ring->sq_flags = (unsigned *)(rings + params.sq_off.flags);
    ring->cq_head = (unsigned *)(rings + params.cq_off.head);
    ring->cq_tail = (unsigned *)(rings + params.cq_off.tail);
    ring->cqes = rings + params.cq_off.cqes;
    ring->tail = *ring->sq_tail;
    ring->head = *ring->cq_head;
    /* Entry i is always described by sqes[i]: the indirection is filled in once. */
    array = (unsigned *)(rings + params.sq_off.array);
    for (i = 0; i < params.sq_entries; i++)
        array[i] = i;
    return 0;
}

static inline int vu_uring_setup(struct vu_uring *ring, unsigned sq, unsigned cq)
{
    /* 5.19: completions are posted when we enter the kernel by ourselves, and no interrupt is sent
     * to this processor for each; a flag says that some are waiting for that. */
    int answer = vu_uring_try(ring, sq, cq, VU_SETUP_COOP_TASKRUN | VU_SETUP_TASKRUN_FLAG);
    if (answer == -EINVAL)
        answer = vu_uring_try(ring, sq, cq, 0);
    if (answer == 0 && ring->cq_entries < cq)
        answer = -ENOSPC;
    return answer;
}

static inline int vu_uring_files(struct vu_uring *ring, const int *files, unsigned count)
{
    return (int)syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_FILES, files, count) < 0
               ? -errno
               : 0;
}

static inline int vu_uring_enter(struct vu_uring *ring, unsigned submit, unsigned complete,
                                 unsigned flags)
{
    int answer = (int)syscall(__NR_io_uring_enter, ring->fd, submit, complete, flags, NULL, 0);
    return answer < 0 ? -errno : answer;
}

/* What was pushed and the kernel has not taken yet. */
static inline unsigned vu_uring_waiting(struct vu_uring *ring)
{
    /* Acquire: pairs with the kernel's release store of the head after it has read an entry, which
     * is then ours to write again. */
    return ring->tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
}

/* Fills in one entry, which the kernel does not see before vu_uring_show; 0 if there is no room. */
static inline int vu_uring_push(struct vu_uring *ring, uint8_t opcode, int file, uint64_t where,
                                uint32_t length, uint64_t offset, uint32_t flags,
                                uint64_t user_data)
{
    struct io_uring_sqe *entry;
    if (vu_uring_waiting(ring) >= ring->sq_entries)
        return 0;
    /* SAFETY: masked to the array, which setup mapped whole. */
    entry = (struct io_uring_sqe *)ring->sqes + (ring->tail & ring->sq_mask);
    memset(entry, 0, sizeof(*entry));
    entry->opcode = opcode;
    entry->flags = file < 0 ? 0 : IOSQE_FIXED_FILE;
    entry->fd = file;
    entry->addr = where;
    entry->len = length;
    entry->off = offset;
    entry->fsync_flags = flags;    /* rw_flags lie in the same place */
    entry->user_data = user_data;
    ring->tail++;
    return 1;
}

/* Asks for the end of what was begun as `target`, and answers by itself as `user_data`. */
static inline int vu_uring_push_cancel(struct vu_uring *ring, uint64_t target, uint64_t user_data)
{
    return vu_uring_push(ring, IORING_OP_ASYNC_CANCEL, -1, target, 0, 0, 0, user_data);
}

/* Shows the kernel what was pushed. */
static inline void vu_uring_show(struct vu_uring *ring)
{
    /* Release: pairs with the kernel's acquire load of the tail; the entries are written before. */
    __atomic_store_n(ring->sq_tail, ring->tail, __ATOMIC_RELEASE);
}

/* The oldest completion not taken yet; 0 if there is none. */
static inline int vu_uring_take(struct vu_uring *ring, uint64_t *user_data, int32_t *result)
{
    /* Acquire: pairs with the kernel's release store of the tail after it has written the entry,
     * and the file's bytes in guest memory before that. */
    unsigned tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
    struct io_uring_cqe *entry;
    if (tail == ring->head)
        return 0;
    /* SAFETY: masked to the array, which setup mapped whole. */
    entry = (struct io_uring_cqe *)ring->cqes + (ring->head & ring->cq_mask);
    *user_data = entry->user_data;
    *result = entry->res;
    ring->head++;
    /* Release: pairs with the kernel's load of the head before it writes over the entry. */
    __atomic_store_n(ring->cq_head, ring->head, __ATOMIC_RELEASE);
    return 1;
}

/* Whether there is a completion not taken yet. */
static inline int vu_uring_has(const struct vu_uring *ring)
{
    /* Acquire as in vu_uring_take, though nothing is read on the strength of it. */
    return __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE) != ring->head;
}

/* Whether the kernel has completions which it posts only if it is entered. */
static inline int vu_uring_owes(struct vu_uring *ring)
{
    unsigned flags = __atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED);
    return (flags & (VU_SQ_TASKRUN | VU_SQ_CQ_OVERFLOW)) != 0;
}

#else  /* Built against headers that do not know of it, or of too little. */

static inline int vu_uring_setup(struct vu_uring *ring, unsigned sq, unsigned cq)
{
    (void)ring, (void)sq, (void)cq;
    return -ENOSYS;
}

static inline int vu_uring_files(struct vu_uring *ring, const int *files, unsigned count)
{
    (void)ring, (void)files, (void)count;
    return -ENOSYS;
}

static inline int vu_uring_enter(struct vu_uring *ring, unsigned submit, unsigned complete,
                                 unsigned flags)
{
    (void)ring, (void)submit, (void)complete, (void)flags;
    return -ENOSYS;
}

static inline unsigned vu_uring_waiting(struct vu_uring *ring)
{
    (void)ring;
    return 0;
}

static inline int vu_uring_push(struct vu_uring *ring, uint8_t opcode, int file, uint64_t where,
                                uint32_t length, uint64_t offset, uint32_t flags,
                                uint64_t user_data)
{
    (void)ring, (void)opcode, (void)file, (void)where, (void)length, (void)offset, (void)flags;
    (void)user_data;
    return 0;
}

static inline int vu_uring_push_cancel(struct vu_uring *ring, uint64_t target, uint64_t user_data)
{
    (void)ring, (void)target, (void)user_data;
    return 0;
}

static inline void vu_uring_show(struct vu_uring *ring)
{
    (void)ring;
}

static inline int vu_uring_take(struct vu_uring *ring, uint64_t *user_data, int32_t *result)
{
    (void)ring, (void)user_data, (void)result;
    return 0;
}

static inline int vu_uring_has(const struct vu_uring *ring)
{
    (void)ring;
    return 0;
}

static inline int vu_uring_owes(struct vu_uring *ring)
{
    (void)ring;
    return 0;
}

#endif

/* Makes a ring whose two queues have at least the entries asked for; 0 or -errno. */
static inline int vu_uring_make(struct vu_uring **made, unsigned sq, unsigned cq)
{
    struct vu_uring *ring = calloc(1, sizeof(*ring));
    int answer = -ENOMEM;
    if (ring != NULL) {
        ring->fd = -1;
        answer = vu_uring_setup(ring, sq, cq);
    }
    if (answer < 0) {
        vu_uring_end(ring);
        ring = NULL;
    }
    *made = ring;
    return answer;
}

#endif
