# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""userfaultfd(2): whoever holds one is told of the pages that a mapping lacks, and provides them."""

from libc.errno cimport errno
from libc.stdint cimport uint64_t, uintptr_t
from posix.fcntl cimport O_CLOEXEC, O_NONBLOCK, open as c_open
from posix.ioctl cimport ioctl
from posix.mman cimport madvise
from posix.unistd cimport close

from vuproc.shm.failures cimport in_words
from vuproc.shm.memory cimport GuestMemory, Mapping

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_userfaultfd

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/mman.h>" nogil:
    int MADV_DONTNEED
    int MADV_NOHUGEPAGE

cdef extern from "<linux/userfaultfd.h>" nogil:
    unsigned long UFFDIO_API
    unsigned long UFFDIO_REGISTER
    unsigned long UFFDIO_UNREGISTER
    unsigned long UFFDIO_WAKE
    unsigned long USERFAULTFD_IOC_NEW
    uint64_t UFFD_API
    uint64_t UFFD_FEATURE_MISSING_SHMEM
    uint64_t UFFDIO_REGISTER_MODE_MISSING
    cdef struct uffdio_api:
        uint64_t api
        uint64_t features
        uint64_t ioctls
    cdef struct uffdio_range:
        uint64_t start
        uint64_t len
    cdef struct uffdio_register:
        uffdio_range range
        uint64_t mode
        uint64_t ioctls


def open_userfault():
    cdef int fd = _made()
    cdef uffdio_api api
    cdef int failure
    api.api = UFFD_API
    api.features = 0
    api.ioctls = 0
    if ioctl(fd, UFFDIO_API, &api) != 0:
        failure = errno
        close(fd)
        raise OSError(failure, f"UFFDIO_API: {in_words(failure)}")
    if not api.features & UFFD_FEATURE_MISSING_SHMEM:
        close(fd)
        raise OSError(95, "this kernel's userfaultfd does not know of shared memory")
    return fd


cdef int _made() except -1:
    # Faults of the kernel's own count, too: it copies into guest memory for us. So the flag for
    # user mode alone is not set, which some systems allow to a few.
    cdef int fd = <int>syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)
    cdef int failure, device
    if fd >= 0:
        return fd
    failure = errno
    device = c_open("/dev/userfaultfd", O_CLOEXEC)
    if device >= 0:
        fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
        if fd < 0:
            failure = errno
        close(device)
        if fd >= 0:
            return fd
    raise OSError(failure, f"userfaultfd: {in_words(failure)}")


def register(int fd, GuestMemory memory):
    cdef Py_ssize_t i
    cdef uffdio_register wanted
    cdef Mapping mapping
    for i in range(memory.count):
        mapping = memory.mappings[i]
        # What is mapped by now goes, and stays in the file: the next touch is a fault again. Huge
        # pages would have the kernel fill in what the front-end has not sent. Both are hints.
        # SAFETY: just the mapping, which `memory` keeps.
        madvise(mapping._base, mapping._length, MADV_DONTNEED)
        madvise(mapping._base, mapping._length, MADV_NOHUGEPAGE)
        wanted.range.start = <uintptr_t>mapping._base
        wanted.range.len = mapping._length
        wanted.mode = UFFDIO_REGISTER_MODE_MISSING
        wanted.ioctls = 0
        if ioctl(fd, UFFDIO_REGISTER, &wanted) != 0:
            raise OSError(
                errno,
                f"region at {memory.table[i].guest_addr:#x}: UFFDIO_REGISTER: "
                f"{in_words(errno)}",
            )


def unregister(int fd, GuestMemory memory):
    cdef Py_ssize_t i
    cdef uffdio_range wanted
    cdef Mapping mapping
    for i in range(memory.count):
        mapping = memory.mappings[i]
        wanted.start = <uintptr_t>mapping._base
        wanted.len = mapping._length
        ioctl(fd, UFFDIO_UNREGISTER, &wanted)


def wake(int fd, uint64_t address, uint64_t length):
    cdef uffdio_range wanted
    wanted.start = address
    wanted.len = length
    if ioctl(fd, UFFDIO_WAKE, &wanted) != 0:
        raise OSError(errno, f"UFFDIO_WAKE: {in_words(errno)}")
