/* The work with no ring: `limit IMAGE HOW WORK...`, one thread a queue.
 *
 * HOW: `call` is a loop of preadv or pwritev, `copy` of memcpy from or to a mapping of the image, and
 * `direct` keeps DEPTH requests in flight by io_uring on a descriptor with O_DIRECT.
 */
#define _GNU_SOURCE
#include "lane.h"
#include "uring.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>

static int file;
static char *image; /* its mapping, for copy */
static char *memory;
static uint32_t tables[8][256];

static void tables_make(void)
{
    for (uint32_t first = 0; first < 256; first++) {
        uint32_t value = first;
        for (int i = 0; i < 8; i++)
            value = value & 1 ? value >> 1 ^ 0xedb88320u : value >> 1;
        tables[0][first] = value;
    }
    for (uint32_t first = 0; first < 256; first++)
        for (int level = 1; level < 8; level++)
            tables[level][first] =
                tables[level - 1][first] >> 8 ^ tables[0][tables[level - 1][first] & 0xff];
}

/* CRC-32 of a multiple of 8 bytes. */
static uint32_t checksum(const char *bytes, size_t size)
{
    uint32_t crc = ~0u, word[2];
    for (size_t at = 0; at < size; at += 8) {
        memcpy(word, bytes + at, 8);
        word[0] ^= crc;
        crc = tables[7][word[0] & 0xff] ^ tables[6][word[0] >> 8 & 0xff] ^
              tables[5][word[0] >> 16 & 0xff] ^ tables[4][word[0] >> 24] ^
              tables[3][word[1] & 0xff] ^ tables[2][word[1] >> 8 & 0xff] ^
              tables[1][word[1] >> 16 & 0xff] ^ tables[0][word[1] >> 24];
    }
    return ~crc;
}

static void serve(struct lane *lane, char *buffer)
{
    uint64_t place = lane_place(lane);
    struct iovec piece = {buffer, work.block};
    ssize_t done = (ssize_t)work.block;
    if (image && work.writes)
        memcpy(image + place, buffer, work.block);
    else if (image)
        memcpy(buffer, image + place, work.block);
    else if (work.writes)
        done = pwritev(file, &piece, 1, (off_t)place);
    else
        done = preadv(file, &piece, 1, (off_t)place);
    lane->failed += done != (ssize_t)work.block;
    if (work.sums) {
        volatile uint32_t sum = checksum(buffer, work.block);
        (void)sum;
    }
}

static void lane_direct(struct lane *lane, char *buffers)
{
    struct uring ring;
    uint64_t submitted = 0, completed = 0, slot;
    int32_t result;
    uring_open(&ring, work.depth);
    for (;;) {
        while (submitted - completed < work.depth && lane_next(lane)) {
            slot = submitted < work.depth ? submitted : uring_free(&ring);
            uring_put(&ring, file, work.writes, buffers + slot * work.block, work.block,
                      lane_place(lane), slot);
            submitted++;
        }
        if (completed == submitted)
            break;
        uring_enter(&ring);
        while (uring_take(&ring, &slot, &result)) {
            lane->failed += result != (int32_t)work.block;
            completed++;
        }
    }
    uring_close(&ring);
}

static void lane_run(struct lane *lane)
{
    char *buffers = memory + (size_t)lane->index * work.depth * work.block;
    if (fcntl(file, F_GETFL) & O_DIRECT) {
        lane_direct(lane, buffers);
        return;
    }
    for (uint64_t i = 0; lane_next(lane); i++)
        serve(lane, buffers + i % work.depth * work.block);
}

int main(int count, char **words)
{
    struct stat status;
    if (count != 8)
        die("usage: limit IMAGE HOW BLOCK SPAN DEPTH QUEUES LETTERS");
    work_parse(words + 3);
    tables_make();
    file = open(words[1], O_RDWR | O_CLOEXEC | (strcmp(words[2], "direct") ? 0 : O_DIRECT));
    if (file < 0 || fstat(file, &status) < 0)
        die("%s: %s", words[1], strerror(errno));
    if (!strcmp(words[2], "copy")) {
        image = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_POPULATE, file, 0);
        if (image == MAP_FAILED)
            die("%s: %s", words[1], strerror(errno));
    }
    memory = shared_memory((size_t)work.lanes * work.depth * work.block);
    return lanes_serve();
}
