/* Xen's devices where there is no Xen: loaded before the C library (LD_PRELOAD), it answers their
 * calls for memfds of the names xen-privcmd and xen-gntdev, as Linux answers them under Xen 4.17.
 *
 * Either file is the memory of domain 7, page by page. The second begins with its grants, of which
 * it counts how often each is mapped: `struct grant`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, DOMAIN = 7, GRANTS = 2048, PERMIT = 1, READ_ONLY = 4, PLACES = 4096 };

struct grant {
    uint32_t frame;
    uint16_t flags;
    uint16_t mapped;
};

static struct {
    uint32_t first, count;
    int used, mapped;
} places[PLACES];

static int is_a(int fd, const char *name)
{
    char path[32] = "/proc/self/fd/", link[64];
    char *end = path + strlen(path), digits[12];
    int count = 0;
    unsigned number = (unsigned)fd;
    do
        digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count)
        *end++ = digits[--count];
    *end = 0;
    ssize_t length = readlink(path, link, sizeof link - 1);
    if (length < 0)
        return 0;
    link[length] = 0;
    return strncmp(link, "/memfd:", 7) == 0 && strncmp(link + 7, name, strlen(name)) == 0;
}

static void *raw_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset);
}

static struct grant *grants_of(int fd)
{
    size_t length = GRANTS * sizeof(struct grant);
    return raw_mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

static int fail(int failure)
{
    errno = failure;
    return -1;
}

static int map_grants(int fd, uint32_t *call)
{
    uint32_t count = call[0], first = call[5], at = 0;
    if (!count)
        return fail(EINVAL);
    while (at < PLACES && places[at].used)
        at++;
    if (at == PLACES)
        return fail(ENOMEM);
    for (uint32_t i = 0; i < count; i++)
        if (call[4 + 2 * i] != DOMAIN || call[5 + 2 * i] != first + i || first + i >= GRANTS)
            return fail(EINVAL);
    struct grant *grants = grants_of(fd);
    if (grants == MAP_FAILED)
        return -1;
    for (uint32_t i = 0; i < count; i++)
        __atomic_add_fetch(&grants[first + i].mapped, 1, __ATOMIC_SEQ_CST);
    munmap(grants, GRANTS * sizeof *grants);
    places[at].first = first;
    places[at].count = count;
    places[at].used = 1;
    places[at].mapped = 0;
    uint64_t index = (uint64_t)(at + 1) * PAGE;
    memcpy(call + 2, &index, sizeof index);
    return 0;
}

static int unmap_grants(int fd, const uint32_t *call)
{
    uint64_t index;
    memcpy(&index, call, sizeof index);
    uint64_t at = index / PAGE - 1;
    if (at >= PLACES || !places[at].used || places[at].count != call[2])
        return fail(ENOENT);
    struct grant *grants = grants_of(fd);
    if (grants == MAP_FAILED)
        return -1;
    for (uint32_t i = 0; i < places[at].count; i++)
        __atomic_sub_fetch(&grants[places[at].first + i].mapped, 1, __ATOMIC_SEQ_CST);
    munmap(grants, GRANTS * sizeof *grants);
    places[at].used = 0;
    return 0;
}

struct batch {
    uint32_t count;
    uint16_t domain, pad;
    uint64_t at;
    const uint64_t *frames;
    int *errors;
};

static int map_frames(int fd, const struct batch *call)
{
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return -1;
    for (uint32_t i = 0; i < call->count; i++) {
        void *at = (void *)(uintptr_t)(call->at + (uint64_t)i * PAGE);
        off_t offset = (off_t)call->frames[i] * PAGE;
        call->errors[i] = call->domain != DOMAIN ? -ESRCH : offset >= stat.st_size ? -EINVAL : 0;
        if (!call->errors[i]
            && raw_mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset) == MAP_FAILED)
            return -1;
    }
    return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    void *call = va_arg(rest, void *);
    va_end(rest);
    if (request == 0x184700UL && is_a(fd, "xen-gntdev"))
        return map_grants(fd, call);
    if (request == 0x104701UL && is_a(fd, "xen-gntdev"))
        return unmap_grants(fd, call);
    if (request == 0x205004UL && is_a(fd, "xen-privcmd"))
        return map_frames(fd, call);
    return (int)syscall(SYS_ioctl, fd, request, call);
}

static void *map_place(size_t length, int protection, int fd, off_t offset)
{
    uint64_t at = (uint64_t)offset / PAGE - 1;
    if (at >= PLACES || !places[at].used || places[at].mapped
        || (length + PAGE - 1) / PAGE != places[at].count) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    struct grant *grants = grants_of(fd);
    char *base = raw_mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (grants == MAP_FAILED || base == MAP_FAILED)
        return MAP_FAILED;
    void *answer = base;
    for (uint32_t i = 0; i < places[at].count && answer != MAP_FAILED; i++) {
        struct grant grant = grants[places[at].first + i];
        off_t frame = (off_t)grant.frame * PAGE;
        if (!(grant.flags & PERMIT) || (protection & PROT_WRITE && grant.flags & READ_ONLY)
            || raw_mmap(base + (size_t)i * PAGE, PAGE, protection, MAP_SHARED | MAP_FIXED, fd, frame)
                   == MAP_FAILED) {
            munmap(base, length);
            errno = EINVAL;
            answer = MAP_FAILED;
        }
    }
    places[at].mapped = answer != MAP_FAILED;
    munmap(grants, GRANTS * sizeof *grants);
    return answer;
}

void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    if (fd >= 0 && flags == MAP_SHARED && is_a(fd, "xen-gntdev"))
        return map_place(length, protection, fd, offset);
    if (fd >= 0 && flags == MAP_SHARED && is_a(fd, "xen-privcmd"))
        return raw_mmap(at, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return raw_mmap(at, length, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t length, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));
