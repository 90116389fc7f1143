/* libblkio as the bench's client: `blkio LIBRARY SOCKET WORK...`, one thread a queue.
 *
 * The library is loaded by its path, so its headers need not be there; the declarations below are
 * those of its <blkio.h> (1.x, whose ABI is stable).
 */
#define _GNU_SOURCE
#include "lane.h"

#include <dlfcn.h>
#include <stdbool.h>

#define QUEUE_SIZE 512
#define BATCH 128

struct blkio;
struct blkioq;

struct blkio_mem_region {
    void *addr;
    size_t len;
    uint64_t iova;
    int64_t fd_offset;
    int fd;
    uint32_t flags;
};

struct blkio_completion {
    void *user_data;
    const char *error_msg;
    int ret;
    uint8_t reserved[12];
};

#define FUNCTIONS(X)                                                                              \
    X(const char *, blkio_get_error_msg, (void))                                                  \
    X(int, blkio_create, (const char *, struct blkio **))                                         \
    X(int, blkio_connect, (struct blkio *))                                                       \
    X(int, blkio_start, (struct blkio *))                                                         \
    X(void, blkio_destroy, (struct blkio **))                                                     \
    X(int, blkio_set_str, (struct blkio *, const char *, const char *))                           \
    X(int, blkio_set_int, (struct blkio *, const char *, int))                                    \
    X(int, blkio_alloc_mem_region, (struct blkio *, struct blkio_mem_region *, size_t))           \
    X(int, blkio_map_mem_region, (struct blkio *, const struct blkio_mem_region *))               \
    X(struct blkioq *, blkio_get_queue, (struct blkio *, int))                                    \
    X(void, blkioq_read, (struct blkioq *, uint64_t, void *, size_t, void *, uint32_t))           \
    X(void, blkioq_write, (struct blkioq *, uint64_t, const void *, size_t, void *, uint32_t))    \
    X(int, blkioq_do_io, (struct blkioq *, struct blkio_completion *, int, int, struct timespec *)) \
    X(void, blkioq_set_completion_fd_enabled, (struct blkioq *, bool))

#define DECLARE(result, name, arguments) static result(*name) arguments;
FUNCTIONS(DECLARE)

static struct blkio *device;
static struct blkioq *queues[MOST_LANES];
static char *memory;
static uint64_t *started[MOST_LANES]; /* a time a slot */

static void check(const char *what, int code)
{
    if (code < 0)
        die("%s: %s: %s", what, strerror(-code), blkio_get_error_msg());
}

static void load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);
    if (!library)
        die("%s", dlerror());
#define FIND(result, name, arguments)                                                             \
    if (!(*(void **)&name = dlsym(library, #name)))                                               \
        die("%s", dlerror());
    FUNCTIONS(FIND)
}

static void submit(struct lane *lane, uintptr_t slot, uint64_t now)
{
    char *buffer = memory + (lane->index * work.depth + slot) * work.block;
    uint64_t place = lane_place(lane);
    started[lane->index][slot] = now;
    if (work.writes)
        blkioq_write(queues[lane->index], place, buffer, work.block, (void *)slot, 0);
    else
        blkioq_read(queues[lane->index], place, buffer, work.block, (void *)slot, 0);
}

static void lane_run(struct lane *lane)
{
    struct blkio_completion done[BATCH];
    struct blkioq *queue = queues[lane->index];
    uint64_t submitted = 0, completed = 0, now = now_ns();
    while (submitted < work.depth && lane_next(lane))
        submit(lane, submitted++, now);
    while (completed < submitted) {
        int got = blkioq_do_io(queue, done, work.polls ? 0 : 1, BATCH, NULL);
        check("do_io", got);
        if (!got)
            continue;
        now = now_ns();
        for (int i = 0; i < got; i++) {
            uintptr_t slot = (uintptr_t)done[i].user_data;
            lane_record(lane, now - started[lane->index][slot]);
            lane->failed += done[i].ret != 0;
            completed++;
            if (lane_next(lane)) {
                submitted++;
                submit(lane, slot, now);
            }
        }
    }
}

int main(int count, char **words)
{
    struct blkio_mem_region region;
    if (count != 8)
        die("usage: blkio LIBRARY SOCKET BLOCK SPAN DEPTH QUEUES LETTERS");
    work_parse(words + 3);
    load(words[1]);
    check("create", blkio_create("virtio-blk-vhost-user", &device));
    check("path", blkio_set_str(device, "path", words[2]));
    check("connect", blkio_connect(device));
    check("num-queues", blkio_set_int(device, "num-queues", (int)work.lanes));
    check("queue-size", blkio_set_int(device, "queue-size", QUEUE_SIZE));
    check("start", blkio_start(device));
    check("memory", blkio_alloc_mem_region(device, &region, work.lanes * work.depth * work.block));
    check("map", blkio_map_mem_region(device, &region));
    memory = region.addr;
    memset(memory, 0x5a, region.len);
    for (unsigned i = 0; i < work.lanes; i++) {
        queues[i] = blkio_get_queue(device, (int)i);
        blkioq_set_completion_fd_enabled(queues[i], !work.polls);
        started[i] = calloc(work.depth, sizeof *started[i]);
    }
    lanes_serve();
    blkio_destroy(&device);
    return 0;
}
