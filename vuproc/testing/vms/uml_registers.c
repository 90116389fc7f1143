/* Preloaded into User-Mode Linux, so that it runs on CPUs with AMX.
 *
 * A guest's program gets its extended registers by PTRACE_SETREGSET (NT_X86_XSTATE), which takes the
 * whole area that the host's CPU has and nothing less: EFAULT. Kernels before 6.13 have room for 2696
 * bytes of it, which is all up to AVX-512 and protection keys. With AMX there are 11008, and the first
 * program of the guest dies of a SIGSEGV. What is missing is the tiles, which no program has without
 * asking the host for them, so zeros do.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __GLIBC__ /* other C libraries declare it otherwise, and have no such kernel to run */

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

/* Intel SDM volume 1, 13.4: the header behind the legacy area begins with the components in use. */
enum { LEGACY_BYTES = 512, HEADER_BYTES = 64, MOST_BYTES = 1 << 16 };
static const uint64_t TILES = 3ULL << 17; /* TILECFG and TILEDATA */

typedef long (*ptrace_function)(enum __ptrace_request, pid_t, void *, void *);

static unsigned char whole[MOST_BYTES];
static size_t whole_bytes; /* what this CPU has; 0: not asked yet */

static long set_whole(ptrace_function next, pid_t pid, void *kind, const struct iovec *given)
{
	struct iovec all = {whole, sizeof(whole)};
	uint64_t in_use;

	if (whole_bytes == 0) {
		if (next(PTRACE_GETREGSET, pid, kind, &all) < 0)
			return -1;
		whole_bytes = all.iov_len;
	}
	if (given->iov_len >= whole_bytes || given->iov_len < LEGACY_BYTES + HEADER_BYTES)
		return next(PTRACE_SETREGSET, pid, kind, (void *)given);
	memset(whole, 0, whole_bytes);
	memcpy(whole, given->iov_base, given->iov_len);
	memcpy(&in_use, whole + LEGACY_BYTES, sizeof(in_use));
	in_use &= ~TILES;
	memcpy(whole + LEGACY_BYTES, &in_use, sizeof(in_use));
	all.iov_len = whole_bytes;
	return next(PTRACE_SETREGSET, pid, kind, &all);
}

long ptrace(enum __ptrace_request request, ...)
{
	static ptrace_function next;
	va_list arguments;
	pid_t pid;
	void *address, *data;

	if (next == NULL)
		next = (ptrace_function)(uintptr_t)dlsym(RTLD_NEXT, "ptrace");
	va_start(arguments, request);
	pid = va_arg(arguments, pid_t);
	address = va_arg(arguments, void *);
	data = va_arg(arguments, void *);
	va_end(arguments);
	if (request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE)
		return set_whole(next, pid, address, data);
	return next(request, pid, address, data);
}

#endif
