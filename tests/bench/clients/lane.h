/* What the bench's programs in C have in common: lanes, one thread each, and a histogram.
 *
 * A program is started with WORK (see `work_parse`), gets ready and prints "ready". Then for each
 * line with a number on its standard input the lanes make so many requests each on average, and one
 * line of JSON comes back. It ends with its standard input.
 */
#ifndef BENCH_LANE_H
#define BENCH_LANE_H

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* As in vuproc/testing/job.py: eight buckets to each power of two of nanoseconds. */
#define BUCKETS 496
#define MOST_LANES 64
#define SHARE 8

struct work {
    uint64_t block, span;
    unsigned depth, lanes;
    int writes, sequential, polls, sums;
};

struct lane {
    pthread_t thread;
    unsigned index;
    uint64_t share, failed, began, ended, random, cursor;
    uint64_t histogram[BUCKETS];
};

static struct work work;
static struct lane lanes[MOST_LANES];
static uint64_t total, given; /* requests of this round, and those that lanes have taken */

/* Make requests while `lane_next` gives some, put their latencies down and count the failed ones. */
static void lane_run(struct lane *lane);

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void lane_record(struct lane *lane, uint64_t ns)
{
    unsigned bucket = (unsigned)ns;
    if (ns >= 8) {
        unsigned power = 63u - (unsigned)__builtin_clzll(ns);
        bucket = (power - 2) * 8 + (unsigned)((ns >> (power - 3)) & 7);
    }
    lane->histogram[bucket]++;
}

/* Whether there is one more request to make. The lanes take them from what is left for all, some at
 * a time: one that is ahead goes on, so that all are busy until the end. */
static inline int lane_next(struct lane *lane)
{
    if (!lane->share) {
        uint64_t before = __atomic_fetch_add(&given, SHARE, __ATOMIC_RELAXED);
        if (before >= total)
            return 0;
        lane->share = total - before < SHARE ? total - before : SHARE;
    }
    lane->share--;
    return 1;
}

/* The byte at which the lane's next block lies. Sequential lanes have a part of the span each. */
static inline uint64_t lane_place(struct lane *lane)
{
    uint64_t blocks = work.span / work.block;
    if (work.sequential) {
        uint64_t part = blocks / work.lanes;
        return (lane->index * part + lane->cursor++ % part) * work.block;
    }
    /* A 64-bit linear congruential generator (Knuth); its upper bits are random. */
    lane->random = lane->random * 6364136223846793005u + 1442695040888963407u;
    return (lane->random >> 33) % blocks * work.block;
}

/* Shared memory as a guest's is, filled so that every page is there. */
static inline char *shared_memory(size_t size)
{
    int fd = memfd_create("bench", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        die("memfd of %zu bytes: %s", size, strerror(errno));
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        die("mmap of %zu bytes: %s", size, strerror(errno));
    close(fd);
    memset(at, 0x5a, size);
    return at;
}

/* BLOCK SPAN DEPTH LANES and letters: w writes, s sequential, p polls, c reckons a checksum. */
static inline void work_parse(char **words)
{
    work.block = strtoull(words[0], NULL, 10);
    work.span = strtoull(words[1], NULL, 10);
    work.depth = (unsigned)strtoul(words[2], NULL, 10);
    work.lanes = (unsigned)strtoul(words[3], NULL, 10);
    work.writes = strchr(words[4], 'w') != NULL;
    work.sequential = strchr(words[4], 's') != NULL;
    work.polls = strchr(words[4], 'p') != NULL;
    work.sums = strchr(words[4], 'c') != NULL;
    if (!work.block || !work.depth || !work.lanes || work.lanes > MOST_LANES)
        die("bad work");
    if (work.span / work.block < work.lanes)
        die("a span of %llu bytes is too small", (unsigned long long)work.span);
}

static void *lane_thread(void *argument)
{
    struct lane *lane = argument;
    lane->began = now_ns();
    lane_run(lane);
    lane->ended = now_ns();
    return NULL;
}

static inline void lanes_round(uint64_t count)
{
    uint64_t began = UINT64_MAX, ended = 0, failed = 0;
    total = count * work.lanes;
    given = 0;
    for (unsigned i = 0; i < work.lanes; i++) {
        lanes[i].index = i;
        lanes[i].share = 0;
        lanes[i].failed = 0;
        lanes[i].random += i + 1;
        memset(lanes[i].histogram, 0, sizeof lanes[i].histogram);
        if (pthread_create(&lanes[i].thread, NULL, lane_thread, &lanes[i]))
            die("no thread");
    }
    for (unsigned i = 0; i < work.lanes; i++) {
        pthread_join(lanes[i].thread, NULL);
        began = lanes[i].began < began ? lanes[i].began : began;
        ended = lanes[i].ended > ended ? lanes[i].ended : ended;
        failed += lanes[i].failed;
    }
    printf("{\"completed\": %llu, \"failed\": %llu, \"seconds\": %.9f, \"latency\": [",
           (unsigned long long)total, (unsigned long long)failed,
           (double)(ended - began) / 1e9);
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        uint64_t sum = 0;
        for (unsigned i = 0; i < work.lanes; i++)
            sum += lanes[i].histogram[bucket];
        printf(bucket ? ", %llu" : "%llu", (unsigned long long)sum);
    }
    puts("]}");
    fflush(stdout);
}

static inline int lanes_serve(void)
{
    char line[64];
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin))
        lanes_round(strtoull(line, NULL, 10));
    return 0;
}

#endif
