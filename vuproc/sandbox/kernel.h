/* System calls without a wrapper in the C library, and the handler of SIGSYS. */
#ifndef VUPROC_SANDBOX_KERNEL_H
#define VUPROC_SANDBOX_KERNEL_H

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/landlock.h, which older headers have in part. */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

/* linux/seccomp.h, since 5.0 and since 5.7. */
#ifndef SECCOMP_FILTER_FLAG_NEW_LISTENER
#define SECCOMP_FILTER_FLAG_NEW_LISTENER (1UL << 3)
#endif
#ifndef SECCOMP_FILTER_FLAG_TSYNC_ESRCH
#define SECCOMP_FILTER_FLAG_TSYNC_ESRCH (1UL << 4)
#endif

struct vu_ruleset {
    uint64_t fs;
    uint64_t net;
    uint64_t scoped;
};

struct vu_path_beneath {
    uint64_t access;
    int32_t parent;
} __attribute__((packed));

static inline long vu_landlock_abi(void)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
    return abi < 0 ? -errno : abi;
}

/* `size`: bytes of the struct that this kernel's ABI knows. */
static inline long vu_landlock_ruleset(uint64_t fs, uint64_t net, uint64_t scoped, size_t size)
{
    struct vu_ruleset ruleset = {fs, net, scoped};
    long fd = syscall(SYS_landlock_create_ruleset, &ruleset, size, 0);
    return fd < 0 ? -errno : fd;
}

static inline long vu_landlock_allow(int ruleset, int path, uint64_t access)
{
    struct vu_path_beneath rule = {access, path};
    return syscall(SYS_landlock_add_rule, ruleset, 1, &rule, 0) < 0 ? -errno : 0;
}

static inline long vu_landlock_restrict(int ruleset)
{
    return syscall(SYS_landlock_restrict_self, ruleset, 0) < 0 ? -errno : 0;
}

/* Every thread gets the filter, or none. Positive: this thread cannot have it. */
static inline long vu_seccomp(const void *program, unsigned short length)
{
    struct sock_fprog whole = {length, (struct sock_filter *)program};
    long answer = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &whole);
    return answer < 0 ? -errno : answer;
}

/* The same, with the filter's listener as the answer: a descriptor, closed on exec. It hangs up when
 * the last thread with this filter has ended, and a process has no other threads than those.
 */
static inline long vu_seccomp_listener(const void *program, unsigned short length)
{
    struct sock_fprog whole = {length, (struct sock_filter *)program};
    unsigned long flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH |
                          SECCOMP_FILTER_FLAG_NEW_LISTENER;
    long answer = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &whole);
    return answer < 0 ? -errno : answer;
}

static inline long vu_prctl(int option, unsigned long value, unsigned long more)
{
    long answer = prctl(option, value, more, 0, 0);
    return answer < 0 ? -errno : answer;
}

static inline long vu_call3(long number, unsigned long a, unsigned long b, unsigned long c)
{
    long answer = syscall(number, a, b, c);
    return answer < 0 ? -errno : answer;
}

/* All sets of this thread become `keep` (as far as it has them), none is inherited. */
static inline long vu_keep_capabilities(uint64_t keep)
{
    struct { uint32_t version; int pid; } header = {0x20080522, 0};
    struct { uint32_t effective, permitted, inheritable; } sets[2];
    int i;

    if (syscall(SYS_capget, &header, sets) < 0)
        return -errno;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
        return -errno;
    if (sets[0].effective & (1 << 8)) { /* CAP_SETPCAP */
        for (i = 0; i < 64; i++)
            if (!(keep >> i & 1) && prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0)
                break; /* the kernel has no more */
    }
    for (i = 0; i < 2; i++) {
        sets[i].permitted &= (uint32_t)(keep >> (32 * i));
        sets[i].effective = sets[i].permitted;
        sets[i].inheritable = 0;
    }
    return syscall(SYS_capset, &header, sets) < 0 ? -errno : 0;
}

/* The handler of SIGSYS: notes the call in a file, then does as the one before would, which ends
 * the process. A call that does not return from there ends it, too: the filter kills for it.
 */
static int vu_report_to = -1;
static struct sigaction vu_before;

static void vu_violation(int number, siginfo_t *info, void *context)
{
    char text[48] = "vuproc-system-call ";
    char digits[12];
    size_t at = strlen(text), count = 0;
    unsigned int call = (unsigned int)info->si_syscall;

    do {
        digits[count++] = (char)('0' + call % 10);
        call /= 10;
    } while (call);
    while (count)
        text[at++] = digits[--count];
    text[at++] = '\n';
    if (write(vu_report_to, text, at) < 0) {
        /* Nobody hears which it was. */
    }
    if (vu_before.sa_handler != SIG_DFL && vu_before.sa_handler != SIG_IGN) {
        if (vu_before.sa_flags & SA_SIGINFO)
            vu_before.sa_sigaction(number, info, context);
        else
            vu_before.sa_handler(number);
    }
    for (;;)
        syscall(0x7FFFFFFF); /* of another ABI: the filter kills for that */
}

static inline long vu_report_violations(int file)
{
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_sigaction = vu_violation;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    vu_report_to = file;
    return sigaction(SIGSYS, &action, &vu_before) < 0 ? -errno : 0;
}

#endif
