/* What the guest's programs share. Each says what it has counted, in lines of KEY=VALUE. */
#ifndef COMMON_H
#define COMMON_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Ends the program if `result` is an error, with what was tried. */
static inline int must(int result, const char *tried)
{
	if (result < 0) {
		printf("%s: %s\n", tried, strerror(errno));
		exit(1);
	}
	return result;
}

/* Nanoseconds of a clock. */
static inline int64_t now_of(clockid_t clock)
{
	struct timespec at;

	must(clock_gettime(clock, &at), "clock_gettime");
	return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

/* Whether there is a file, of the host's, that says so; without one, once is enough. */
static inline int enough(const char *path)
{
	return !path || access(path, F_OK) == 0;
}

/* Byte `at` of what is transferred in a round. */
static inline uint8_t pattern(unsigned int round, unsigned int at)
{
	return (round * 2654435761u >> 16) + at * 7;
}

#endif
