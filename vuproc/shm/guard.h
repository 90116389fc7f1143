/* Copies over memory that may not be there: a file that was truncated, a full file system, a page
 * with an uncorrectable error. What is SIGBUS otherwise, and the end of the process, is an answer.
 *
 * A copy must not be left by any other way than its end, and so holds no lock and calls nothing.
 */
#ifndef VUPROC_GUARD_H
#define VUPROC_GUARD_H

#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>

static struct sigaction vu_guard_before;
static _Thread_local sigjmp_buf vu_guard_back;
static _Thread_local volatile sig_atomic_t vu_guard_armed;

static void vu_guard_caught(int number, siginfo_t *about, void *context)
{
    (void)context;
    /* Positive: it comes from the kernel, over an access of ours; else somebody has sent it. */
    if (about->si_code > 0 && vu_guard_armed)
        siglongjmp(vu_guard_back, 1);
    /* Over no copy: as if we were not here. The access is made once more, the signal sent so. */
    sigaction(number, &vu_guard_before, NULL);
    if (about->si_code <= 0)
        raise(number);
}

/* Once a process, before the first copy; again is fine. 0, or -1 with errno. */
static inline int vu_guard_install(void)
{
    struct sigaction ours, there;
    if (sigaction(SIGBUS, NULL, &there) != 0)
        return -1;
    if (there.sa_flags & SA_SIGINFO && there.sa_sigaction == vu_guard_caught)
        return 0;
    vu_guard_before = there;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = vu_guard_caught;
    /* The handler is left by a jump: the signal must not stay blocked for that. */
    ours.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigemptyset(&ours.sa_mask);
    return sigaction(SIGBUS, &ours, NULL);
}

/* Do it; 0, or -1 if memory was missing, with a part of it done. Not inlined: the jump would lose
 * the caller's variables. */
static __attribute__((noinline)) int vu_guarded(void (*work)(const void *), const void *what)
{
    if (sigsetjmp(vu_guard_back, 0) != 0) {
        vu_guard_armed = 0;
        return -1;
    }
    vu_guard_armed = 1;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    work(what);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    vu_guard_armed = 0;
    return 0;
}

struct vu_copy {
    const struct iovec *pieces;
    int count;
    char *flat;
};

static void vu_scatter(const void *what)
{
    const struct vu_copy *copy = what;
    char *flat = copy->flat;
    for (int i = 0; i < copy->count; flat += copy->pieces[i++].iov_len)
        memcpy(copy->pieces[i].iov_base, flat, copy->pieces[i].iov_len);
}

/* A page that is read first is mapped with its neighbours, as far as they are in memory (up to 16
 * of them), and one that is written first comes alone, which takes as long. */
static inline void vu_fault_around(const char *flat, size_t length)
{
    const size_t area = 65536;
    for (size_t at = 0; at < length; at += area - ((size_t)(flat + at) & (area - 1)))
        (void)*(const volatile char *)(flat + at);
}

static void vu_gather(const void *what)
{
    const struct vu_copy *copy = what;
    char *flat = copy->flat;
    for (int i = 0; i < copy->count; flat += copy->pieces[i++].iov_len) {
        vu_fault_around(flat, copy->pieces[i].iov_len);
        memcpy(flat, copy->pieces[i].iov_base, copy->pieces[i].iov_len);
    }
}

/* Between `flat` and the pieces, one after the other; `gather`: from the pieces. */
static inline int vu_guarded_copy(const struct iovec *pieces, int count, char *flat, int gather)
{
    const struct vu_copy copy = {pieces, count, flat};
    return vu_guarded(gather ? vu_gather : vu_scatter, &copy);
}

static void vu_clear(const void *what)
{
    const struct iovec *area = what;
    memset(area->iov_base, 0, area->iov_len);
}

static inline int vu_guarded_clear(char *flat, size_t length)
{
    const struct iovec area = {flat, length};
    return vu_guarded(vu_clear, &area);
}

#endif
