/* Reads of one file by a program, in a guest: reads FILE SECONDS
 *
 * For so long each: 4 KiB at random with O_DIRECT, one after the other, so that each is a READ; then
 * all of it in order, 128 KiB at a time, with the guest's page cache emptied of it before, so that
 * the kernel reads ahead. Writes a line of each: what it was, reads, microseconds. It pauses before
 * each, so that whoever reads the lines can look at a clock in between.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { SMALL = 4096, LARGE = 128 * 1024, PAUSE_US = 50000, LOOKS = 16 };

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void tell(const char *what, uint64_t reads, uint64_t spent)
{
    printf("%s %llu %llu\n", what, (unsigned long long)reads, (unsigned long long)spent);
    fflush(stdout);
    usleep(PAUSE_US);
}

static void at_random(const char *path, char *buffer, off_t blocks, uint64_t wanted)
{
    uint64_t reads = 0, began, random = 88172645463325252ull;
    int fd = open(path, O_RDONLY | O_DIRECT);
    if (fd < 0)
        fail("open with O_DIRECT");
    began = now_us();
    do {
        for (int i = 0; i < LOOKS; i++, reads++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if (pread(fd, buffer, SMALL, (off_t)(random % (uint64_t)blocks) * SMALL) != SMALL)
                fail("pread");
        }
    } while (now_us() - began < wanted);
    tell("random", reads, now_us() - began);
    close(fd);
}

static void in_order(const char *path, char *buffer, uint64_t wanted)
{
    uint64_t reads = 0, began, spent = 0;
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        fail("open");
    do {
        ssize_t got;
        if (lseek(fd, 0, SEEK_SET) < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
            fail("rewind");
        began = now_us();
        while ((got = read(fd, buffer, LARGE)) > 0)
            reads++;
        if (got < 0)
            fail("read");
        spent += now_us() - began;
    } while (spent < wanted);
    tell("sequential", reads, spent);
    close(fd);
}

int main(int count, char **arguments)
{
    char *buffer;
    uint64_t wanted;
    off_t size;
    int fd;
    if (count != 3 || posix_memalign((void **)&buffer, SMALL, LARGE))
        return 2;
    wanted = (uint64_t)(atof(arguments[2]) * 1e6);
    fd = open(arguments[1], O_RDONLY);
    if (fd < 0 || (size = lseek(fd, 0, SEEK_END)) < SMALL)
        fail(arguments[1]);
    close(fd);
    tell("ready", 0, 0);
    at_random(arguments[1], buffer, size / SMALL, wanted);
    in_order(arguments[1], buffer, wanted);
    return 0;
}
