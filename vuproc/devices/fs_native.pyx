# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""READ and WRITE of a directory's open files, between the file and the guest's memory.

All else is Python's, and so is one of them whose file is not known here, or whose form is not the
usual one. Both may be run twice: what they come to is the same.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EIO
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t

from vuproc.shm.atomics cimport vu_load_relaxed64
from vuproc.shm.native cimport (
    TO_PYTHON,
    NativeDevice,
    copy_in,
    copy_out,
    read_file,
    write_file,
)
from vuproc.shm.request cimport Chain

cdef enum:
    READ = 15
    WRITE = 16
    # Largest error number that the driver takes (spec/fuse.py has these for Python).
    ERRNO_MAX = 511

cdef inline uint64_t place_of(uint64_t handle) noexcept nogil:
    # Handles count up, above four bits that say how a file is opened.
    return (handle >> 4) % PLACES


cdef class NativeFs(NativeDevice):
    """Serves READ and WRITE of the open files that it is told of."""

    def __cinit__(self, *, bint writable):
        self.writable = writable

    def follow(self, words, uint64_t value):
        """Serve as long as the first of `words`, of 64 bits and shared, has this value; None: serve
        nothing any more.
        """
        cdef Py_buffer view
        self.word = NULL
        self.words = None
        if words is None:
            return
        held = memoryview(words)
        PyObject_GetBuffer(held, &view, PyBUF_SIMPLE)
        if view.len >= <Py_ssize_t>sizeof(uint64_t) and <size_t>view.buf % sizeof(uint64_t) == 0:
            # SAFETY: eight bytes, aligned, of a buffer that `held` keeps exported.
            self.word = <const uint64_t *>view.buf
        PyBuffer_Release(&view)
        self.words = held
        if self.word == NULL:
            raise ValueError("not a word of 64 bits")
        self.session = value

    def know(self, uint64_t node, uint64_t handle, int fd):
        """A file is open; `fd` is borrowed, until `forget`."""
        cdef OpenFile *there = &self.files[place_of(handle)]
        there.node = node
        there.handle = handle
        there.fd = fd
        there.known = there.used = True

    def forget(self, uint64_t node, uint64_t handle):
        """It is to be closed."""
        cdef OpenFile *there = self.find(node, handle)
        if there != NULL:
            there.known = False

    def take_used(self):
        """The files (node, handle) that were used since this was asked last."""
        cdef int i
        used = []
        for i in range(PLACES):
            if self.files[i].known and self.files[i].used:
                self.files[i].used = False
                used.append((self.files[i].node, self.files[i].handle))
        return used

    cdef OpenFile *find(self, uint64_t node, uint64_t handle) noexcept nogil:
        # SAFETY: place_of is below PLACES.
        cdef OpenFile *there = &self.files[place_of(handle)]
        if there.known and there.handle == handle and there.node == node:
            return there
        return NULL

    cdef int64_t serve(self, Chain *chain) noexcept nogil:
        cdef Moves asked
        cdef OpenFile *file
        if chain.readable < sizeof(Moves) or chain.writable < sizeof(OutHeader):
            return TO_PYTHON
        copy_out(chain, 0, &asked, sizeof(Moves))
        if asked.header.length != chain.readable:
            return TO_PYTHON
        if self.word == NULL or vu_load_relaxed64(self.word) != self.session:
            return TO_PYTHON
        if asked.header.opcode != READ and not (asked.header.opcode == WRITE and self.writable):
            return TO_PYTHON
        file = self.find(asked.header.node, asked.io.handle)
        if file == NULL:
            return TO_PYTHON
        file.used = True
        if asked.header.opcode == READ:
            return self.read(chain, &asked, file.fd)
        return self.write(chain, &asked, file.fd)

    cdef int64_t read(self, Chain *chain, Moves *asked, int fd) noexcept nogil:
        cdef uint64_t size = min(<uint64_t>asked.io.size, chain.writable - sizeof(OutHeader))
        cdef uint64_t moved
        cdef int reason
        if asked.io.offset > <uint64_t>INT64_MAX - size:
            return TO_PYTHON
        moved = read_file(chain, sizeof(OutHeader), size, fd, <int64_t>asked.io.offset, &reason)
        # One that is short is the end of the file for the guest, and no error.
        return self.answer(chain, asked, reason, moved)

    cdef int64_t write(self, Chain *chain, Moves *asked, int fd) noexcept nogil:
        cdef uint64_t size = asked.io.size, moved
        cdef uint32_t content[2]
        cdef int reason
        if size != chain.readable - sizeof(Moves) or asked.io.offset > <uint64_t>INT64_MAX - size:
            return TO_PYTHON
        if chain.writable < sizeof(OutHeader) + sizeof(content):
            return TO_PYTHON
        moved = write_file(chain, sizeof(Moves), size, fd, <int64_t>asked.io.offset, &reason)
        if reason:
            return self.answer(chain, asked, reason, 0)
        # linux/fuse.h: struct fuse_write_out.
        content[0] = <uint32_t>moved
        content[1] = 0
        copy_in(chain, sizeof(OutHeader), content, sizeof(content))
        return self.answer(chain, asked, 0, sizeof(content))

    cdef int64_t answer(
        self, Chain *chain, Moves *asked, int reason, uint64_t moved
    ) noexcept nogil:
        # The header, before `moved` bytes that are there already.
        cdef OutHeader header
        if reason:
            moved = 0
            if reason > ERRNO_MAX:
                reason = EIO
        header.length = <uint32_t>(sizeof(OutHeader) + moved)
        header.error = -reason
        header.unique = asked.header.unique
        copy_in(chain, 0, &header, sizeof(OutHeader))
        return header.length
