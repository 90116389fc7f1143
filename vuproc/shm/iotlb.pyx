# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""What a worker knows of an IOMMU's translations, and what it would like to know."""

cimport cython
from libc.stdint cimport UINT64_MAX, uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove
from posix.uio cimport iovec

from vuproc.shm.memory cimport NO_ROOM, NOT_MAPPED, GuestMemory

from vuproc.errors import MemoryFault

cdef enum:
    # No IOMMU has smaller pages. What it has larger ones for is answered for more than is asked.
    PAGE = 4096
    MOST = 16384
    # Pieces that `gather` gives at most.
    VIEWS_MAX = 1024

ENTRIES_MAX = MOST

cdef Py_ssize_t entries_max = MOST


def keep_at_most(Py_ssize_t count):
    """Have this process's caches be smaller than ENTRIES_MAX."""
    global entries_max
    if not 0 < count <= MOST:
        raise ValueError(f"a cache of {count} translations")
    entries_max = count


@cython.final
cdef class Iotlb:
    """Ranges of I/O virtual addresses, and where they are in the front-end's own."""

    def __dealloc__(self):
        free(self.table)

    def __len__(self):
        return self.count

    def update(self, object iova, object size, object user_addr, uint8_t access):
        """Know of a range, in place of all that overlaps it."""
        cdef Translation *table
        cdef Py_ssize_t at
        # Python's integers do not wrap: compared before they become C's.
        if size <= 0:
            raise MemoryFault(iova, size, "translation without bytes")
        if not 0 <= iova <= (1 << 64) - size:
            raise MemoryFault(iova, size, "I/O virtual addresses wrap around")
        if not 0 <= user_addr <= (1 << 64) - size:
            raise MemoryFault(user_addr, size, "user addresses wrap around")
        at = self.above(iova) - 1
        if access and at >= 0 and self.table[at].first == iova:
            if self.table[at].last == iova + (size - 1) and self.table[at].user_addr == user_addr:
                # Who is asked for one kind of access may answer for that alone (virtio-iommu).
                self.table[at].access |= access
                return
        self.forget(iova, iova + (size - 1))
        if not access:
            return
        if self.count >= entries_max:
            # Anyone will do: what is in use is looked up again, and asked for.
            self.victim = (self.victim + 1) % self.count
            self.cut_out(self.victim, self.victim + 1)
        if self.count == self.room:
            table = <Translation *>realloc(self.table, 2 * (self.room + 32) * sizeof(Translation))
            if table == NULL:
                raise MemoryError
            self.table = table
            self.room = 2 * (self.room + 32)
        at = self.above(iova)
        # SAFETY: at <= count < room.
        memmove(self.table + at + 1, self.table + at, (self.count - at) * sizeof(Translation))
        self.table[at].first = iova
        self.table[at].last = iova + (size - 1)
        self.table[at].user_addr = user_addr
        self.table[at].access = access
        self.count += 1

    def invalidate(self, uint64_t first, uint64_t last):
        """Forget each translation that has an address in this range; how many there were."""
        return self.forget(first, last) if first <= last else 0

    def clear(self):
        """Forget all of them, and what is missing."""
        self.count = 0
        self.missed = 0

    def place(self, GuestMemory memory not None, uint64_t iova, uint64_t length, uint8_t access):
        """The user address of a range that lies in one piece; None if some of it is not known."""
        cdef iovec piece
        cdef int made = self.find_pieces(memory, iova, length, access, &piece, 1)
        cdef Py_ssize_t i
        if made == MISSED:
            return None
        if made != 1:
            raise MemoryFault(iova, length, "I/O virtual addresses not in one piece of memory")
        i = self.above(iova) - 1
        return self.table[i].user_addr + (iova - self.table[i].first)

    def gather(self, GuestMemory memory not None, uint64_t iova, uint64_t length, uint8_t access):
        """Views that together are a range; None if some of it is not known."""
        cdef iovec pieces[VIEWS_MAX]
        cdef int made = self.find_pieces(memory, iova, length, access, pieces, VIEWS_MAX)
        cdef int i
        if made == MISSED:
            return None
        if made < 0:
            raise MemoryFault(iova, length, "I/O virtual addresses wrap, or in too many pieces")
        return tuple([
            memory.view_host(<unsigned char *>pieces[i].iov_base, pieces[i].iov_len, False)
            for i in range(made)
        ])

    def take_misses(self):
        """What was looked for and is not known, since the last call."""
        cdef int i
        found = [(self.misses[i].iova, self.misses[i].access) for i in range(self.missed)]
        self.missed = 0
        return found

    cdef Py_ssize_t above(self, uint64_t iova) noexcept nogil:
        # The first translation that begins above the address.
        cdef Py_ssize_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) >> 1
            if self.table[middle].first <= iova:
                low = middle + 1
            else:
                high = middle
        return low

    cdef int find_pieces(
        self, GuestMemory memory, uint64_t iova, uint64_t length, uint8_t access, iovec *out,
        int room,
    ) noexcept nogil:
        # Number of pieces, at most `room`, that together are the range; MISSED, NO_ROOM, or
        # NOT_MAPPED for what can be no range. Pieces that follow one another in a region are one.
        cdef Py_ssize_t i, region, before = -1
        cdef uint64_t here, user, within
        cdef uint8_t lacks
        cdef int made = 0
        cdef bint known = True
        if length and length - 1 > UINT64_MAX - iova:
            return NOT_MAPPED
        while length:
            i = self.above(iova) - 1
            region = -1
            lacks = access
            if i >= 0 and iova <= self.table[i].last:
                lacks &= ~self.table[i].access
                if not lacks:
                    user = self.table[i].user_addr + (iova - self.table[i].first)
                    region = memory.find_user(user)
            if region < 0:
                # Not known, not for this, or of memory that is gone: whoever is asked says better.
                known = False
                if not self.note_miss(iova, lacks if lacks else access):
                    return MISSED
                here = PAGE - iova % PAGE
                if here > length:
                    here = length
            else:
                # No wrap: both ends were compared when they were made known.
                here = self.table[i].last - iova
                here = length if length - 1 <= here else here + 1
                within = user - memory.table[region].user_addr
                if here > memory.table[region].size - within:
                    here = memory.table[region].size - within
                # SAFETY: within < size and within + here <= size: the piece is inside the mapping.
                if before == region and <unsigned char *>out[made - 1].iov_base + (
                    out[made - 1].iov_len
                ) == memory.table[region].host + within:
                    out[made - 1].iov_len += here
                elif made == room:
                    return NO_ROOM if known else MISSED
                else:
                    out[made].iov_base = memory.table[region].host + within
                    out[made].iov_len = here
                    made += 1
            before = region
            length -= here
            iova += here  # 0 at the very end of all addresses, when nothing is left
        return made if known else MISSED

    cdef bint note_miss(self, uint64_t iova, uint8_t access) noexcept nogil:
        # False if there is no room for it: those that are noted come first.
        cdef int i
        iova -= iova % PAGE
        for i in range(self.missed):
            if self.misses[i].iova == iova and self.misses[i].access == access:
                return True
        if self.missed == MISSES_MAX:
            return False
        self.misses[self.missed].iova = iova
        self.misses[self.missed].access = access
        self.missed += 1
        return True

    cdef Py_ssize_t forget(self, uint64_t first, uint64_t last) noexcept nogil:
        # Whole translations: of what was too much, the rest is asked for again.
        cdef Py_ssize_t end = self.above(last), start = self.above(first)
        if start and self.table[start - 1].last >= first:
            start -= 1
        self.cut_out(start, end)
        return end - start

    cdef void cut_out(self, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
        # SAFETY: start <= end <= count.
        memmove(self.table + start, self.table + end, (self.count - end) * sizeof(Translation))
        self.count -= end - start
