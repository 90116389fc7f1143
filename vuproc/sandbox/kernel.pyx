# cython: language_level=3
"""The system calls of a sandbox that Python has no name for: each gives OSError if it fails."""

from libc.stdint cimport uint64_t

import os
from errno import EBUSY


cdef extern from "kernel.h" nogil:
    long vu_landlock_abi()
    long vu_landlock_ruleset(uint64_t fs, uint64_t net, uint64_t scoped, size_t size)
    long vu_landlock_allow(int ruleset, int path, uint64_t access)
    long vu_landlock_restrict(int ruleset)
    long vu_seccomp(const void *program, unsigned short length)
    long vu_seccomp_listener(const void *program, unsigned short length)
    long vu_prctl(int option, unsigned long value, unsigned long more)
    long vu_call3(long number, unsigned long a, unsigned long b, unsigned long c)
    long vu_keep_capabilities(uint64_t keep)
    long vu_report_violations(int file)


cdef long _checked(long answer) except -1:
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer))
    return answer


def landlock_abi():
    """The kernel's version of Landlock."""
    return _checked(vu_landlock_abi())


def landlock_ruleset(uint64_t fs, uint64_t net, uint64_t scoped, size_t size):
    """A new ruleset that handles these accesses: its descriptor, which is the caller's."""
    return _checked(vu_landlock_ruleset(fs, net, scoped, size))


def landlock_allow(int ruleset, int path, uint64_t access):
    """Allow `access` to what is at or beneath `path`, an open descriptor."""
    _checked(vu_landlock_allow(ruleset, path, access))


def landlock_restrict(int ruleset):
    """Bind this thread, and those that it starts, to a ruleset for good."""
    _checked(vu_landlock_restrict(ruleset))


def seccomp(bytes program):
    """Have every thread of this process filtered by `program` for good."""
    cdef const char *start = program
    if _checked(vu_seccomp(start, _instructions(program))):
        raise OSError(EBUSY, "another thread has a filter of its own")


def seccomp_listener(bytes program):
    """The same; the filter's listener (seccomp_unotify(2)), a descriptor that is the caller's."""
    cdef const char *start = program
    return _checked(vu_seccomp_listener(start, _instructions(program)))


cdef unsigned short _instructions(bytes program) except 0:
    cdef size_t length = len(program) // 8
    if len(program) % 8 or not 0 < length <= 4096:
        raise ValueError(f"a filter of {len(program)} bytes")
    return <unsigned short>length


def prctl(int option, unsigned long value, unsigned long more=0):
    """As prctl(2); what it gives."""
    return _checked(vu_prctl(option, value, more))


def call(long number, unsigned long a=0, unsigned long b=0, unsigned long c=0):
    """Any system call of up to three numbers."""
    return _checked(vu_call3(number, a, b, c))


def keep_capabilities(uint64_t keep):
    """Give up all capabilities but those whose bits are in `keep`, for good."""
    _checked(vu_keep_capabilities(keep))


def report_violations(int file):
    """Have the filter's SIGSYS note its call in `file`, which stays open; then the handler that was
    there goes on.
    """
    _checked(vu_report_violations(file))
