// Preloaded into a program, this sets its clocks apart from the machine's: what it reads is the
// kernel's time and an offset, which whoever has the same file mapped may change at any time.
//
// SOAK_CLOCK names the file: two int64_t, nanoseconds, of the wall clock and of all monotonic ones.
// Deadlines that a program gives as a time of such a clock are taken back to the kernel's.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
// No monotonic clock has come so far, and no wall clock is behind it: 31 years.
#define LONGEST_UPTIME_S 1000000000

enum { WALL, MONOTONIC, NONE };

static _Atomic int64_t none[2];
static _Atomic int64_t *offsets = none;

static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_clockwait)(pthread_cond_t *, pthread_mutex_t *, clockid_t,
                             const struct timespec *);
static int (*real_sem_clockwait)(sem_t *, clockid_t, const struct timespec *);

__attribute__((constructor)) static void begin(void) {
    real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    real_clockwait = dlsym(RTLD_NEXT, "pthread_cond_clockwait");
    real_sem_clockwait = dlsym(RTLD_NEXT, "sem_clockwait");
    const char *path = getenv("SOAK_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED)
        offsets = mapped;
}

static int which(clockid_t clock) {
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
        return WALL;
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_BOOTTIME:
        return MONOTONIC;
    default:
        return NONE;
    }
}

static struct timespec moved(const struct timespec *time, int64_t by) {
    int64_t ns = time->tv_sec * SECOND + time->tv_nsec + by;
    if (ns < 0)
        ns = 0;
    return (struct timespec){ns / SECOND, ns % SECOND};
}

// What the kernel calls a time of one of our clocks.
static struct timespec back(clockid_t clock, const struct timespec *time) {
    int kind = which(clock);
    return kind == NONE ? *time : moved(time, -offsets[kind]);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int rc = real_gettime ? real_gettime(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
    int kind = which(clock);
    if (rc == 0 && kind != NONE)
        *now = moved(now, offsets[kind]);
    return rc;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    *now = (struct timeval){time.tv_sec, time.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *now) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (now)
        *now = time.tv_sec;
    return time.tv_sec;
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until,
                    struct timespec *left) {
    struct timespec kernel = flags & TIMER_ABSTIME ? back(clock, until) : *until;
    return syscall(SYS_clock_nanosleep, clock, flags, &kernel, left) ? errno : 0;
}

// A condition knows its clock and does not tell; the time itself does.
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    clockid_t clock = until->tv_sec < LONGEST_UPTIME_S ? CLOCK_MONOTONIC : CLOCK_REALTIME;
    struct timespec kernel = back(clock, until);
    return real_clockwait(condition, mutex, clock, &kernel);
}

int sem_clockwait(sem_t *restrict semaphore, clockid_t clock, const struct timespec *restrict until) {
    struct timespec kernel = back(clock, until);
    return real_sem_clockwait(semaphore, clock, &kernel);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    return sem_clockwait(semaphore, CLOCK_REALTIME, until);
}
