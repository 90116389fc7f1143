/* The build for crash tests: the process dies by SIGKILL before its k-th store to shared memory.
 * A write to the call descriptor counts as one: between the last store of a batch and the
 * interrupt is a place to die at, too.
 *
 * Two words, shared with forked children: the stores so far, and k (0: never), which begins as
 * VUPROC_CRASH_AT says. The first unit that is loaded makes them and says in VUPROC_CRASH_WORDS where
 * they are, for the units after it and for the tests, which set both before each run.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile int64_t *vu_crash_words;

__attribute__((constructor)) static void vu_crash_setup(void)
{
    const char *known = getenv("VUPROC_CRASH_WORDS");
    const char *at = getenv("VUPROC_CRASH_AT");
    long pid = 0;
    void *words = NULL;
    char text[64];
    if (known != NULL && sscanf(known, "%ld %p", &pid, &words) == 2 && pid == (long)getpid()) {
        vu_crash_words = words;
        return;
    }
    words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED)
        abort();
    vu_crash_words = words;
    vu_crash_words[1] = at != NULL ? atoll(at) : 0;
    snprintf(text, sizeof(text), "%ld %p", (long)getpid(), words);
    setenv("VUPROC_CRASH_WORDS", text, 1);
}

static inline void vu_crash_point(void)
{
    if (++vu_crash_words[0] == vu_crash_words[1])
        kill(getpid(), SIGKILL);
}

static inline ssize_t vu_crash_write(int fd, const void *from, size_t size)
{
    vu_crash_point();
    return write(fd, from, size);
}
#define write(fd, from, size) vu_crash_write(fd, from, size)
