/* The calls of Xen's devices that map a domain's memory: /dev/xen/privcmd and /dev/xen/gntdev.
 *
 * The numbers are those of Linux for x86-64 and arm64 (include/uapi/xen/gntdev.h, privcmd.h). All of
 * them answer 0 or -errno.
 */
#ifndef VUPROC_XEN_H
#define VUPROC_XEN_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

#define VU_GNTDEV_MAP_GRANT_REF 0x184700UL
#define VU_GNTDEV_UNMAP_GRANT_REF 0x104701UL
#define VU_PRIVCMD_MMAPBATCH_V2 0x205004UL

enum {
    /* Tries for a frame that the hypervisor has paged out, and the pause between two. */
    VU_XEN_TRIES = 50,
    VU_XEN_PAUSE_NS = 10 * 1000 * 1000,
};

struct vu_grant_ref {
    uint32_t domid;
    uint32_t ref;
};

struct vu_map_grants {
    uint32_t count;
    uint32_t pad;
    uint64_t index;
    struct vu_grant_ref refs[];
};

struct vu_unmap_grants {
    uint64_t index;
    uint32_t count;
    uint32_t pad;
};

struct vu_map_frames {
    uint32_t count;
    uint16_t domid;
    uint16_t pad;
    uint64_t at;
    const uint64_t *frames;
    int *errors;
};

/* `count` grants from `first` on, which follow one another: the offset for mmap. */
static inline int vu_xen_map_grants(int fd, uint32_t domid, uint32_t first, uint32_t count,
                                    uint64_t *index)
{
    struct vu_map_grants *call = calloc(1, sizeof *call + count * sizeof call->refs[0]);
    int answer = 0;
    if (call == NULL)
        return -ENOMEM;
    call->count = count;
    for (uint32_t i = 0; i < count; i++) {
        call->refs[i].domid = domid;
        call->refs[i].ref = first + i;
    }
    if (ioctl(fd, VU_GNTDEV_MAP_GRANT_REF, call) != 0)
        answer = -errno;
    *index = call->index;
    free(call);
    return answer;
}

static inline int vu_xen_unmap_grants(int fd, uint64_t index, uint32_t count)
{
    struct vu_unmap_grants call = {.index = index, .count = count};
    return ioctl(fd, VU_GNTDEV_UNMAP_GRANT_REF, &call) == 0 ? 0 : -errno;
}

/* Map the frames from `first` on at `at`, all of them: the call succeeds though single ones fail. */
static inline int vu_xen_map_frames(int fd, uint16_t domid, uint64_t first, uint32_t count, void *at)
{
    const struct timespec pause = {.tv_nsec = VU_XEN_PAUSE_NS};
    uint64_t *frames = calloc(count, sizeof *frames);
    int *errors = calloc(count, sizeof *errors);
    int answer = frames != NULL && errors != NULL ? 0 : -ENOMEM;
    struct vu_map_frames call = {
        .count = count, .domid = domid, .at = (uint64_t)(uintptr_t)at, .frames = frames,
        .errors = errors,
    };
    for (uint32_t i = 0; answer == 0 && i < count; i++)
        frames[i] = first + i;
    for (int tries = 0; answer == 0; tries++) {
        int paged_out = 0;
        if (ioctl(fd, VU_PRIVCMD_MMAPBATCH_V2, &call) != 0 && errno != ENOENT) {
            answer = -errno;
            break;
        }
        for (uint32_t i = 0; answer == 0 && i < count; i++) {
            if (errors[i] == -ENOENT && tries < VU_XEN_TRIES)
                paged_out = 1;
            else if (errors[i] != 0)
                answer = errors[i];
        }
        if (!paged_out || answer != 0)
            break;
        nanosleep(&pause, NULL);
    }
    free(frames);
    free(errors);
    return answer;
}

#endif
