# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""Memory of a Xen domain: frames of it, or pages that it has granted, whole regions or one by one."""

cimport cython
from libc.errno cimport errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from posix.fcntl cimport O_CLOEXEC, O_RDWR, fcntl as c_fcntl, open as c_open
from posix.mman cimport (
    MAP_FAILED,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munmap,
)
from posix.unistd cimport close

from vuproc.shm.failures cimport in_words, os_error
from vuproc.shm.memory cimport NO_MAPPING, GuestMemory, Mapping

from vuproc.errors import MemoryFault

cdef extern from "<fcntl.h>" nogil:
    int F_DUPFD_CLOEXEC

cdef extern from "<sys/mman.h>" nogil:
    int MADV_DONTDUMP
    int MADV_DONTFORK

cdef extern from "xen.h" nogil:
    int vu_xen_map_grants(int fd, uint32_t domid, uint32_t first, uint32_t count, uint64_t *index)
    int vu_xen_unmap_grants(int fd, uint64_t index, uint32_t count)
    int vu_xen_map_frames(int fd, uint16_t domid, uint64_t first, uint32_t count, void *at)

cdef enum:
    # Xen's pages, whatever the host's.
    PAGE_SHIFT = 12
    PAGE = 4096

cdef uint64_t GRANTED = <uint64_t>1 << 63
"""This bit of a guest address says that the page number below it is that of a grant."""


@cython.final
cdef class XenDevice:
    """An open /dev/xen/privcmd or /dev/xen/gntdev, as a front-end has passed it.

    Opened once more where that is possible: what a process has mapped through an open file of its
    own is free when it dies, also on hosts that do not see the mapping go.
    """

    def __cinit__(self, int fd):
        self.fd = c_open(f"/proc/self/fd/{fd}".encode(), O_RDWR | O_CLOEXEC)
        if self.fd < 0:
            self.fd = c_fcntl(fd, F_DUPFD_CLOEXEC, 0)
        if self.fd < 0:
            raise os_error(errno)

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)


@cython.final
cdef class XenMapping(Mapping):
    """Pages of a domain, mapped together."""

    def __dealloc__(self):
        # The mapping itself goes after this. On some hosts either of the two alone would keep the
        # grants in use.
        if self.device is not None:
            vu_xen_unmap_grants(self.device.fd, self.index, self.count)


@cython.final
cdef class OnDemand:
    """A region of grants that are mapped while a request needs them, and no longer."""

    def __cinit__(self, uint64_t guest_addr, uint64_t size, XenDevice device not None, domid):
        self.device = device
        self.domid = domid
        self.guest_addr = guest_addr
        self.size = size


def foreign(XenDevice device not None, uint16_t domid, uint64_t guest_addr, uint64_t size):
    """Map frames of a domain by their guest-physical addresses, all of them at once."""
    cdef uint32_t count = _pages(guest_addr, size)
    cdef XenMapping made = _mapped(device, guest_addr, size, count, 0, PROT_READ | PROT_WRITE)
    cdef int answer
    with nogil:
        answer = vu_xen_map_frames(
            device.fd, domid, guest_addr >> PAGE_SHIFT, count, made._base
        )
    if answer < 0:
        raise MemoryFault(guest_addr, size, f"domain {domid}: {in_words(-answer).lower()}")
    return made


def granted(XenDevice device not None, uint32_t domid, uint64_t guest_addr, uint64_t size):
    """Map grants of a domain for reading and writing."""
    return _granted(device, domid, guest_addr, size, PROT_READ | PROT_WRITE)


cdef XenMapping map_buffer(
    GuestMemory memory, uint64_t guest_addr, uint64_t length, bint writable
):
    # The buffer of a request, which is in no region that is mapped; None: it is nowhere. What the
    # device only reads may have been granted for just that.
    cdef OnDemand region
    cdef uint64_t within
    for region in memory.on_demand:
        if guest_addr < region.guest_addr:
            continue
        within = guest_addr - region.guest_addr
        if within < region.size and length <= region.size - within:
            return _granted(
                region.device, region.domid, guest_addr, length,
                PROT_READ | PROT_WRITE if writable else PROT_READ,
            )
    return None


cdef XenMapping _granted(
    XenDevice device, uint32_t domid, uint64_t guest_addr, uint64_t size, int protection
):
    cdef uint32_t count = _pages(guest_addr, size)
    cdef uint64_t first = (guest_addr & ~GRANTED) >> PAGE_SHIFT, index = 0
    cdef XenMapping made
    cdef int answer
    if first + count > <uint64_t>1 << 32:
        raise MemoryFault(guest_addr, size, "no numbers of grants")
    with nogil:
        answer = vu_xen_map_grants(device.fd, domid, <uint32_t>first, count, &index)
    if answer < 0:
        raise MemoryFault(guest_addr, size, f"grants of domain {domid}: {in_words(-answer).lower()}")
    try:
        made = _mapped(device, guest_addr, size, count, index, protection)
    except MemoryFault:
        vu_xen_unmap_grants(device.fd, index, count)
        raise
    made.device = device
    made.index = index
    made.count = count
    return made


cdef XenMapping _mapped(
    XenDevice device, uint64_t guest_addr, uint64_t size, uint32_t count, uint64_t offset,
    int protection,
):
    cdef XenMapping made = XenMapping.__new__(XenMapping, NO_MAPPING, size, 0)
    cdef size_t length = <size_t>count << PAGE_SHIFT
    cdef void *base
    with nogil:
        base = mmap(NULL, length, protection, MAP_SHARED, device.fd, <long>offset)
    if base == MAP_FAILED:
        raise MemoryFault(guest_addr, size, f"mmap: {in_words(errno).lower()}")
    made._base = base
    made._length = length
    made.size = size
    # SAFETY: the pages begin with the one that has the first byte, and end with that of the last.
    made.data = <unsigned char *>base + (guest_addr & (PAGE - 1))
    # As for any guest memory; hints.
    madvise(base, length, MADV_DONTDUMP)
    madvise(base, length, MADV_DONTFORK)
    return made


cdef uint32_t _pages(uint64_t guest_addr, uint64_t size) except 0:
    # Those that have a byte of the range. No wrap: the size is that of a mapping, below 2^63.
    cdef uint64_t count = ((guest_addr & (PAGE - 1)) + size + (PAGE - 1)) >> PAGE_SHIFT
    if not size or size > <uint64_t>1 << 43 or count > 0x7fffffff:
        raise MemoryFault(guest_addr, size, "no size of a mapping")
    return <uint32_t>count
