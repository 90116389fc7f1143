/* What a class leaves to those that derive from it, and one of them has forgotten.
 *
 * A hook that silently did nothing would lose requests, or the guest's memory. It is a mistake in the
 * code, whatever the driver does, so the process ends at the first call of it.
 */
#ifndef VUPROC_MISSING_H
#define VUPROC_MISSING_H

#include <stdio.h>
#include <stdlib.h>

static inline void vu_missing(const char *name)
{
    fprintf(stderr, "vuproc: a derived class does not fill in %s\n", name);
    fflush(stderr);
    abort();
}

#endif
