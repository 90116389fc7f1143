# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Guest memory: which bytes of which file are mapped where, and address translation with bounds."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munmap,
)
from posix.uio cimport iovec
from posix.unistd cimport sysconf, _SC_PAGESIZE

from vuproc.shm.failures cimport in_words

from vuproc.errors import MemoryFault

cdef extern from "<sys/mman.h>" nogil:
    int MAP_NORESERVE
    int MADV_DONTDUMP
    int MADV_DONTFORK
    int MREMAP_MAYMOVE
    int MREMAP_FIXED
    void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)

cdef extern from "<sys/stat.h>" nogil:
    cdef struct c_stat "stat":
        int64_t st_size
        unsigned int st_mode
    int c_fstat "fstat"(int fd, c_stat *out)
    bint S_ISREG(unsigned int mode)

cdef extern from "<sys/vfs.h>" nogil:
    cdef struct c_statfs "statfs":
        long f_type
        long f_bsize
    int c_fstatfs "fstatfs"(int fd, c_statfs *out)

cdef enum:
    # vhost's own limit of memory slots (vhost-user, GET_MAX_MEM_SLOTS).
    MAX_REGIONS = 509
    # In place of a descriptor: room in which nothing is mapped yet.
    NO_FILE = -2

cdef uint64_t FILE_END = 0x7fffffffffffffff
"""The largest file offset there is."""
cdef uint64_t JOINED_FROM = 1 << 63
"""Where the addresses of joined pages begin: no guest has memory there, and no front-end."""
cdef long HUGETLBFS_MAGIC = 0x958458f6
"""statfs f_type of files whose mappings must be in units of f_bsize (linux/magic.h)."""


@cython.final
@cython.freelist(32)
cdef class _Window:
    """A part of a mapping as a buffer: what a memoryview of guest memory is a view of."""

    cdef Mapping mapping
    cdef unsigned char *start
    cdef Py_ssize_t length
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.start, self.length, self.readonly, flags)


cdef class Mapping:
    """One shared mapping of a part of a file. Views of it keep it mapped."""

    def __cinit__(self, int fd, object size, object offset):
        cdef c_stat stat
        cdef c_statfs statfs
        cdef uint64_t length, position, block, start, end
        cdef int failure
        if not 0 < size <= FILE_END or not 0 <= offset <= FILE_END - size:
            raise MemoryFault(offset, size, "no possible range of a file")
        length = size
        position = offset
        if fd == NO_MAPPING:
            return
        if fd == NO_FILE:
            self._base = mmap(
                NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
            )
            if self._base == MAP_FAILED:
                failure = errno
                self._base = NULL
                raise MemoryFault(offset, size, f"mmap: {in_words(failure).lower()}")
            self._length = length
            self.data = <unsigned char *>self._base
            self.size = length
            return
        if c_fstat(fd, &stat) != 0:
            raise MemoryFault(offset, size, f"fstat: {in_words(errno).lower()}")
        # Past the end of a file there is SIGBUS. Devices have no size to compare with.
        if S_ISREG(stat.st_mode) and position + length > <uint64_t>stat.st_size:
            raise MemoryFault(offset, size, f"past the end of the file ({stat.st_size} bytes)")
        block = sysconf(_SC_PAGESIZE)
        if c_fstatfs(fd, &statfs) == 0 and statfs.f_type == HUGETLBFS_MAGIC:
            block = statfs.f_bsize
        # length <= 2^63 - 1 - position, so neither end can wrap.
        start = position // block * block
        end = (position + length + block - 1) // block * block
        # SAFETY: a fresh mapping of [start, end) of the file, which contains the range asked for.
        self._base = mmap(
            NULL, end - start, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, start
        )
        if self._base == MAP_FAILED:
            failure = errno
            self._base = NULL
            raise MemoryFault(offset, size, f"mmap: {in_words(failure).lower()}")
        self._length = end - start
        # A core dump must not hold the guest's memory, nor a helper that is forked see it. Both
        # are hints: a kernel without them maps as well.
        madvise(self._base, self._length, MADV_DONTDUMP)
        madvise(self._base, self._length, MADV_DONTFORK)
        self.data = <unsigned char *>self._base + (position - start)
        self.size = length

    def __dealloc__(self):
        if self._base != NULL:
            munmap(self._base, self._length)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.size, 0, flags)

    cdef object view_of(self, unsigned char *start, Py_ssize_t length, bint readonly):
        # The caller has found [start, start + length) inside this mapping.
        cdef _Window window = _Window.__new__(_Window)
        window.mapping = self
        window.start = start
        window.length = length
        window.readonly = readonly
        return PyMemoryView_FromObject(window)


@cython.final
cdef class GuestMemory:
    """An immutable table of guest memory; tables made from one another share their mappings."""

    def __cinit__(self):
        self.mappings = ()
        self.on_demand = ()

    def __dealloc__(self):
        free(self.table)

    @staticmethod
    def from_regions(regions):
        """Map a whole table of (guest_addr, size, user_addr, mmap_offset, fd)."""
        cdef GuestMemory memory = GuestMemory()
        for guest_addr, size, user_addr, mmap_offset, fd in regions:
            memory = memory.with_region(guest_addr, size, user_addr, mmap_offset, fd)
        return memory

    def with_region(
        self, object guest_addr, object size, object user_addr, object mmap_offset, int fd
    ):
        """Return a table with one region more."""
        _check_region(self, guest_addr, size, user_addr)
        return _added(self, guest_addr, size, user_addr, Mapping(fd, size, mmap_offset))

    def with_mapping(self, object guest_addr, object user_addr, Mapping mapping not None):
        """Return a table with one region more, which is mapped already."""
        _check_region(self, guest_addr, mapping.size, user_addr)
        return _added(self, guest_addr, mapping.size, user_addr, mapping)

    def with_on_demand(self, tuple regions not None):
        """Return a table with the same mappings and other regions whose pages are mapped when a
        request needs them.
        """
        cdef GuestMemory made = _copied(self, 0)
        made.on_demand = regions
        return made

    def joined(self, pages):
        """Return a table in which whole pages follow one another, and where: a user address."""
        cdef uint64_t page, block = sysconf(_SC_PAGESIZE)
        cdef size_t size = len(pages) * block, at = 0
        cdef Mapping window
        cdef unsigned char *host
        cdef object place = JOINED_FROM
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.table[i].user_addr + self.table[i].size > place:
                place = self.table[i].user_addr + self.table[i].size
            if self.table[i].guest_addr + self.table[i].size > place:
                place = self.table[i].guest_addr + self.table[i].size
        place = (place + block - 1) // block * block
        if not size or place > (1 << 64) - size or self.count >= MAX_REGIONS:
            raise MemoryFault(place, size, "no room to join pages")
        window = Mapping(NO_FILE, size, 0)
        for page in pages:
            host = self.user(page, block)
            if host == NULL or <uintptr_t>host % block:
                raise MemoryFault(page, block, "no whole page of one region")
            # SAFETY: the page is inside a mapping, and its new place inside the window, which
            # nobody else knows of yet. An old size of 0 leaves the page where it is, too.
            if mremap(
                host, 0, block, MREMAP_MAYMOVE | MREMAP_FIXED, <void *>(window.data + at)
            ) == MAP_FAILED:
                raise MemoryFault(page, block, f"mremap: {in_words(errno).lower()}")
            at += block
        return _added(self, place, size, place, window), place

    def with_joined_of(self, GuestMemory other not None):
        """Return a table that has the joined pages of another, too, where they are there."""
        cdef GuestMemory made = self
        cdef Py_ssize_t i
        for i in range(other.count):
            if other.table[i].user_addr >= JOINED_FROM:
                guest, size, user = _fields(&other.table[i])
                _check_disjoint(made, guest, size, user)
                made = _added(made, guest, size, user, other.mappings[i])
        return made

    def without_region(self, object guest_addr, object size, object user_addr):
        """Return a table without the region that has just these values."""
        cdef GuestMemory made
        cdef Py_ssize_t i, at
        for at in range(self.count):
            if _fields(&self.table[at]) == (guest_addr, size, user_addr):
                break
        else:
            raise MemoryFault(guest_addr, size, "no such region")
        made = _table_of(self.count - 1)
        for i in range(at):
            made.table[i] = self.table[i]
        for i in range(at, made.count):
            made.table[i] = self.table[i + 1]
        made.mappings = self.mappings[:at] + self.mappings[at + 1:]
        made.on_demand = self.on_demand
        return made

    @property
    def regions(self):
        """(guest_addr, size, user_addr) of each region, by guest address."""
        cdef Py_ssize_t i
        return tuple([_fields(&self.table[i]) for i in range(self.count)])

    @property
    def hosts(self):
        """Where each region is mapped in this process, in the order of `regions`."""
        cdef Py_ssize_t i
        return tuple([<uintptr_t>self.table[i].host for i in range(self.count)])

    def __len__(self):
        return self.count

    def view(self, uint64_t guest_addr, uint64_t length):
        """Return a writable view of a range inside one region."""
        cdef Py_ssize_t i = self.find(guest_addr)
        if i < 0 or length > self.table[i].size - (guest_addr - self.table[i].guest_addr):
            raise MemoryFault(guest_addr, length, "guest address not inside one region")
        return (<Mapping>self.mappings[i]).view_of(
            self.table[i].host + (guest_addr - self.table[i].guest_addr), length, False
        )

    def user_view(self, uint64_t user_addr, uint64_t length):
        """As `view`, by the front-end's user address."""
        cdef unsigned char *start = self.user(user_addr, length)
        if start == NULL:
            raise MemoryFault(user_addr, length, "user address not inside one region")
        return self.view_host(start, length, False)

    def gather(self, uint64_t guest_addr, uint64_t length):
        """Views that together cover a range, over adjacent regions."""
        cdef iovec pieces[MAX_REGIONS]
        cdef int found = self.translate(guest_addr, length, pieces, MAX_REGIONS)
        cdef int i
        if found < 0:
            raise MemoryFault(guest_addr, length, "guest address not mapped")
        return tuple([
            self.view_host(<unsigned char *>pieces[i].iov_base, pieces[i].iov_len, False)
            for i in range(found)
        ])

    cdef Py_ssize_t find(self, uint64_t guest_addr) noexcept nogil:
        # The last region that starts at or below the address, if it reaches it; else -1.
        cdef Py_ssize_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) >> 1
            if self.table[middle].guest_addr <= guest_addr:
                low = middle + 1
            else:
                high = middle
        low -= 1
        if low < 0 or guest_addr - self.table[low].guest_addr >= self.table[low].size:
            return -1
        return low

    cdef int translate(
        self, uint64_t guest_addr, uint64_t length, iovec *out, int room
    ) noexcept nogil:
        # Number of pieces, at most `room`, that together are the range; or a negative answer.
        # A range of length 0 is no piece at all.
        cdef Py_ssize_t i
        cdef uint64_t within, here
        cdef int made = 0
        if length == 0:
            return 0
        i = self.find(guest_addr)
        if i < 0:
            return NOT_MAPPED
        while True:
            within = guest_addr - self.table[i].guest_addr
            here = self.table[i].size - within
            if here > length:
                here = length
            if made == room:
                return NO_ROOM
            # SAFETY: within < size and within + here <= size, so the piece is inside the mapping.
            out[made].iov_base = self.table[i].host + within
            out[made].iov_len = here
            made += 1
            length -= here
            if length == 0:
                return made
            # No wrap: a region's end fits 64 bits unless it is 2^64, and then no region follows.
            guest_addr += here
            i += 1
            if i == self.count or self.table[i].guest_addr != guest_addr:
                return NOT_MAPPED

    cdef Py_ssize_t find_user(self, uint64_t user_addr) noexcept nogil:
        # The region that has this user address; -1: none.
        cdef Py_ssize_t i
        for i in range(self.count):
            if user_addr >= self.table[i].user_addr:
                if user_addr - self.table[i].user_addr < self.table[i].size:
                    return i
        return -1

    cdef uint64_t guest_of(self, void *host) noexcept nogil:
        # The guest address of a byte that `translate`, or another of our answers, has pointed to.
        cdef Py_ssize_t i
        cdef uintptr_t within
        for i in range(self.count):
            within = <uintptr_t>host - <uintptr_t>self.table[i].host
            if within < self.table[i].size:
                return self.table[i].guest_addr + within
        return 0

    cdef unsigned char *user(self, uint64_t user_addr, uint64_t length) noexcept nogil:
        # Rings lie inside one region: no front-end has them straddle two. NULL if not covered.
        cdef Py_ssize_t i = self.find_user(user_addr)
        cdef uint64_t within
        if i < 0:
            return NULL
        within = user_addr - self.table[i].user_addr
        if length > self.table[i].size - within:
            return NULL
        # SAFETY: within + length <= size, both compared above without wrap-around.
        return self.table[i].host + within

    cdef object view_host(self, unsigned char *start, Py_ssize_t length, bint readonly):
        # `start` comes from `translate` or `user` of this table: find the mapping it lies in.
        cdef Py_ssize_t i
        for i in range(self.count):
            if <uintptr_t>start - <uintptr_t>self.table[i].host < self.table[i].size:
                return (<Mapping>self.mappings[i]).view_of(start, length, readonly)
        return memoryview(b"") if readonly else memoryview(bytearray())

    cdef GuestMemory holding(self, list mappings):
        # For `view_host` alone: the table does not say where in the guest these are.
        cdef GuestMemory made = _copied(self, len(mappings))
        cdef Mapping mapping
        cdef Py_ssize_t i = self.count
        for mapping in mappings:
            made.table[i].host = mapping.data
            made.table[i].size = mapping.size
            made.table[i].guest_addr = made.table[i].user_addr = 0
            i += 1
        made.mappings = self.mappings + tuple(mappings)
        return made

    cdef bint keeps(self, GuestMemory other):
        # True if each mapping of `other` is one of this table's, at the same addresses.
        cdef Py_ssize_t i, j
        for i in range(other.count):
            j = self.find(other.table[i].guest_addr)
            if j < 0 or self.table[j].guest_addr != other.table[i].guest_addr:
                return False
            if self.table[j].host != other.table[i].host:
                return False
        return True


cdef GuestMemory _table_of(Py_ssize_t count):
    # A table with room for `count` regions, to be filled in at once.
    cdef GuestMemory made = GuestMemory.__new__(GuestMemory)
    if count:
        made.table = <Region *>malloc(count * sizeof(Region))
        if made.table == NULL:
            raise MemoryError
    made.count = count
    return made


cdef GuestMemory _copied(GuestMemory memory, Py_ssize_t more):
    # The same table, with room for some regions more behind it, to be filled in at once.
    cdef GuestMemory made = _table_of(memory.count + more)
    cdef Py_ssize_t i
    for i in range(memory.count):
        made.table[i] = memory.table[i]
    made.mappings = memory.mappings
    made.on_demand = memory.on_demand
    return made


cdef int _check_region(GuestMemory memory, guest_addr, size, user_addr) except -1:
    if size <= 0:
        raise MemoryFault(guest_addr, size, "region without bytes")
    # Python's integers do not wrap: compared before they become C's.
    if not 0 <= guest_addr <= (1 << 64) - size:
        raise MemoryFault(guest_addr, size, "guest addresses wrap around")
    if not 0 <= user_addr <= (1 << 64) - size:
        raise MemoryFault(user_addr, size, "user addresses wrap around")
    if memory.count >= MAX_REGIONS:
        raise MemoryFault(guest_addr, size, f"more than {MAX_REGIONS} regions")
    return _check_disjoint(memory, guest_addr, size, user_addr)


cdef int _check_disjoint(GuestMemory memory, guest_addr, size, user_addr) except -1:
    cdef Py_ssize_t i
    cdef Region *known
    for i in range(memory.count):
        known = &memory.table[i]
        if _overlap(guest_addr, size, known.guest_addr, known.size):
            raise MemoryFault(guest_addr, size, "guest addresses overlap another region")
        if _overlap(user_addr, size, known.user_addr, known.size):
            raise MemoryFault(user_addr, size, "user addresses overlap another region")
    return 0


cdef GuestMemory _added(GuestMemory memory, guest_addr, size, user_addr, Mapping mapping):
    # The table with a region more, which was compared with the others.
    cdef GuestMemory made = _table_of(memory.count + 1)
    cdef Py_ssize_t i, at = 0
    while at < memory.count and memory.table[at].guest_addr < guest_addr:
        at += 1
    for i in range(at):
        made.table[i] = memory.table[i]
    made.table[at].guest_addr = guest_addr
    made.table[at].size = size
    made.table[at].user_addr = user_addr
    made.table[at].host = mapping.data
    for i in range(at, memory.count):
        made.table[i + 1] = memory.table[i]
    made.mappings = memory.mappings[:at] + (mapping,) + memory.mappings[at:]
    made.on_demand = memory.on_demand
    return made


cdef bint _overlap(object start, object size, object known, object known_size) except -1:
    return start < known + known_size and known < start + size


cdef tuple _fields(const Region *region):
    return (region.guest_addr, region.size, region.user_addr)
