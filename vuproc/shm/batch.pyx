# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""Many requests at a time: each verb is one call for all of them, and a loop in native code."""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.errno cimport EINTR, EINVAL, errno
from libc.stdint cimport (
    INT64_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
)
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.uio cimport iovec

from vuproc.shm.blocking cimport step
from vuproc.shm.cursor cimport Cursor, advance, copy_in, copy_out
from vuproc.shm.request cimport Request
from vuproc.shm.transfers cimport READ, WRITE, Operation

cdef extern from "Python.h":
    int PyObject_AsFileDescriptor(object file) except -1

cdef bytes INTEGERS = b"?bBhHiIlLqQ"

cdef enum:
    # Most bytes that one `read` gives.
    READ_LIMIT = 1 << 24


cdef struct Move:
    iovec *pieces
    Cursor *cursor
    int64_t offset
    uint64_t length
    int64_t answer


cdef void carry_out(Operation operation, int fd, Move *move) noexcept nogil:
    # The bytes that were moved, or -errno if none were. The cursor has checked the length.
    cdef uint64_t done = 0
    cdef Py_ssize_t moved
    while done < move.length:
        moved = step(
            move.pieces, move.cursor, operation == WRITE, fd, move.offset + <int64_t>done,
            move.length - done,
        )
        if moved < 0 and errno == EINTR:
            continue
        if moved < 0 and done == 0:
            move.answer = -errno
            return
        if moved <= 0:
            break
        done += moved
    move.answer = <int64_t>done


cdef Batch batch_of(list requests):
    cdef Batch batch = Batch.__new__(Batch)
    batch.requests = requests
    return batch


cdef int numbers(object given, int64_t *out, Py_ssize_t count, str name) except -1:
    # One for all, or one for each: of a buffer of integers, or of a sequence. 1: they are unsigned.
    cdef Py_buffer view
    cdef Py_ssize_t i
    cdef int64_t one
    cdef char kind
    if isinstance(given, int):
        one = given
        for i in range(count):
            out[i] = one
        return 0
    if len(given) != count:
        raise ValueError(f"{len(given)} {name} for {count} requests")
    try:
        PyObject_GetBuffer(given, &view, PyBUF_FORMAT | PyBUF_ND)
    except (TypeError, BufferError):
        for i in range(count):
            out[i] = given[i]
        return 0
    try:
        kind = b"B"[0] if view.format == NULL else view.format[0]
        if view.ndim != 1 or view.format != NULL and view.format[1] != 0 or kind not in INTEGERS:
            raise ValueError(f"{name} are integers, one after the other")
        # SAFETY: a buffer without strides of `count` items, as was looked at.
        if view.itemsize == 1:
            for i in range(count):
                out[i] = <int64_t>(<int8_t *>view.buf)[i] if kind in b"b" else <int64_t>(<uint8_t *>view.buf)[i]
        elif view.itemsize == 2:
            for i in range(count):
                out[i] = <int64_t>(<int16_t *>view.buf)[i] if kind in b"h" else <int64_t>(<uint16_t *>view.buf)[i]
        elif view.itemsize == 4:
            for i in range(count):
                out[i] = <int64_t>(<int32_t *>view.buf)[i] if kind in b"il" else <int64_t>(<uint32_t *>view.buf)[i]
        else:
            for i in range(count):
                out[i] = (<int64_t *>view.buf)[i]
    finally:
        PyBuffer_Release(&view)
    return kind in b"QL"


cdef inline void load_integer(char *to, const char *at, Py_ssize_t size) noexcept nogil:
    # A copy of known size is a load and a store.
    if size == 8:
        memcpy(to, at, 8)
    elif size == 4:
        memcpy(to, at, 4)
    else:
        memcpy(to, at, size)


cdef int64_t *places_for(Py_ssize_t count) except NULL:
    cdef int64_t *made = <int64_t *>malloc((count + 1) * sizeof(int64_t))
    if made == NULL:
        raise MemoryError
    return made


cdef Column column_of(Py_ssize_t count, char format, Py_ssize_t size, void *data):
    # Of `data`, which is from malloc and the column's from here on, unless it raises. NULL: zeros.
    cdef Column made = Column.__new__(Column)
    made.data = <char *>(calloc(count + 1, size) if data == NULL else data)
    if made.data == NULL:
        raise MemoryError
    made.count = count
    made.size = size
    made.format[0] = format
    made.format[1] = 0
    return made


@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Column:
    """Integers of one size."""

    def __init__(self):
        raise TypeError("a batch makes its columns")

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        # SAFETY: `data` has `count` integers, and lives as long as this does, which the view keeps.
        buffer.buf = self.data
        buffer.obj = self
        buffer.len = self.count * self.size
        buffer.readonly = 0
        buffer.itemsize = self.size
        buffer.format = self.format if flags & PyBUF_FORMAT else NULL
        buffer.ndim = 1
        buffer.shape = &self.count if flags & PyBUF_ND else NULL
        buffer.strides = &self.size if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL

    cdef object view(self):
        return PyMemoryView_FromObject(self)


cdef Py_ssize_t size_of(str format, int64_t offset) except -1:
    # Bytes of an integer of a column.
    if offset >= 0:
        if format == "Q":
            return 8
        if format == "I":
            return 4
        if format == "H":
            return 2
        if format == "B":
            return 1
    raise ValueError(f"no column {format!r} at {offset}: one of B, H, I and Q")


@cython.final
@cython.no_gc
cdef class Batch:
    """Requests of one queue that have come together, in their order."""

    def __init__(self):
        raise TypeError("a ring makes its batches")

    def __len__(self):
        return len(self.requests)

    def __iter__(self):
        return iter(self.requests)

    def __getitem__(self, which):
        if isinstance(which, slice):
            return batch_of(self.requests[which])
        return self.requests[which]

    def __repr__(self):
        return f"<Batch of {len(self.requests)} requests>"

    def select(self, indexes):
        """Those at these places, in this order, each once."""
        cdef list found = [self.requests[i] for i in indexes]
        if len(set(map(id, found))) != len(found):
            raise ValueError("a request is to be there twice")
        return batch_of(found)

    def where(self, mask, value=None):
        """Those for which `mask` has something true, or `value`."""
        cdef Py_ssize_t count = len(self.requests), chosen = 0, i
        cdef int64_t *each
        cdef int64_t wanted = 0 if value is None else value
        cdef bint any_but = value is None
        if value is None and not PyObject_CheckBuffer(mask):
            # A sequence of whatever.
            mask = [bool(one) for one in mask]
        each = places_for(count)
        try:
            if isinstance(mask, int):
                raise TypeError("a mask has something for each request")
            numbers(mask, each, count, "in a mask")
            for i in range(count):
                chosen += (each[i] == wanted) != any_but
            if chosen == count:
                # Most often requests are all of a kind.
                return self
            if chosen == 0:
                return batch_of([])
            return batch_of(
                [at(self.requests, i) for i in range(count) if (each[i] == wanted) != any_but]
            )
        finally:
            free(each)

    # What they have.

    @property
    def readable(self):
        """Bytes that are left to read of each."""
        return self.left_of(False)

    @property
    def writable(self):
        """Bytes that are left to write of each."""
        return self.left_of(True)

    def frames(self, Py_ssize_t skip=0):
        """What each gives to read, from byte `skip` on, wherever its cursor is."""
        cdef list found = []
        self.check()
        for request in self.requests:
            segments = request.readable_segments
            if len(segments) == 1:
                found.append(segments[0][skip:])
            else:
                found.append(memoryview(b"".join(segments))[skip:])
        return found

    def column(self, Py_ssize_t offset, str format):
        """The integer at a byte of what each gives to read, wherever its cursor is."""
        cdef Py_ssize_t count = len(self.requests), i, size
        cdef Column out
        cdef char *to
        cdef Request request
        cdef Cursor cursor
        self.check()
        size = size_of(format, offset)
        out = column_of(count, <char>ord(format), size, NULL)
        to = out.data
        for i in range(count):
            request = at(self.requests, i)
            if request.total_readable >= <uint64_t>(offset + size):
                if request.pieces.iov_len >= <uint64_t>(offset + size):
                    # SAFETY: there are readable bytes, so that the first piece is readable; `out`
                    # has `size` bytes for each.
                    load_integer(to + i * size, <char *>request.pieces.iov_base + offset, size)
                    continue
                cursor.piece = 0
                cursor.within = 0
                cursor.left = request.total_readable
                advance(request.pieces, &cursor, offset)
                # SAFETY: `out` has `size` bytes for each.
                copy_out(request.pieces, &cursor, to + i * size, size)
        return out.view()

    def skip(self, Py_ssize_t n):
        """Move the read cursor of each over up to `n` bytes."""
        cdef Request request
        self.check()
        if n < 0:
            raise ValueError("cannot skip backwards")
        for request in self.requests:
            advance(request.pieces, &request.reading, min(<uint64_t>n, request.reading.left))

    def read(self, Py_ssize_t n):
        """Copy the next `n` bytes of each, and move the cursors."""
        cdef Py_ssize_t count = len(self.requests)
        cdef bytearray out
        cdef char *to
        cdef Request request
        self.check()
        if n < 0 or n > READ_LIMIT // max(count, 1):
            raise ValueError(f"{n} bytes of each of {count} requests, at most {READ_LIMIT} in all")
        out = bytearray(count * n)
        to = PyByteArray_AS_STRING(out)
        for request in self.requests:
            # SAFETY: `out` has n bytes for each.
            copy_out(request.pieces, &request.reading, to, min(<uint64_t>n, request.reading.left))
            to += n
        return memoryview(out)

    # What they are answered with.

    def write(self, data):
        """Copy a row of `data` to the write cursor of each."""
        cdef Py_buffer view
        cdef Py_ssize_t row
        cdef const char *at
        cdef Request request
        self.check()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            row = self.row_of(view.len)
            for request in self.requests:
                if <uint64_t>row > request.writing.left:
                    raise ValueError(
                        f"{row} bytes for head {request._head}, of {request.writing.left} writable ones"
                    )
            at = <const char *>view.buf
            for request in self.requests:
                copy_in(request.pieces, &request.writing, at, row)
                at += row
        finally:
            PyBuffer_Release(&view)

    def put(self, int64_t offset, data):
        """Copy the same bytes to an absolute offset of each."""
        self.put_from(offset, data, False)

    def put_rows(self, int64_t offset, data):
        """Copy a row of `data` to an absolute offset of each."""
        self.put_from(offset, data, True)

    cdef int put_from(self, int64_t offset, object data, bint rows) except -1:
        cdef Py_buffer view
        cdef Py_ssize_t size
        cdef const char *at
        cdef Request request
        self.check()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            size = self.row_of(view.len) if rows else view.len
            for request in self.requests:
                if not request.has_place(offset, size):
                    raise ValueError(
                        f"{size} bytes at {offset} of head {request._head}, which has "
                        f"{request.total_writable} writable ones"
                    )
            at = <const char *>view.buf
            for request in self.requests:
                request.put_at(offset, at, size)
                if rows:
                    at += size
        finally:
            PyBuffer_Release(&view)
        return 0

    def preadv(
        self, file, offsets, lengths=None, *, uint64_t unit=1, uint64_t spare=0,
        uint64_t within=INT64_MAX,
    ):
        """Read `lengths` bytes of a file at `offsets` to the write cursor of each."""
        return self.move(READ, file, offsets, lengths, unit, spare, within)

    def pwritev(
        self, file, offsets, lengths=None, *, uint64_t unit=1, uint64_t spare=0,
        uint64_t within=INT64_MAX,
    ):
        """Write `lengths` bytes at the read cursor of each to a file at `offsets`."""
        return self.move(WRITE, file, offsets, lengths, unit, spare, within)

    def finish(self, written=None):
        """Complete all of them; `written`: the used length of each (what the verbs wrote)."""
        cdef Py_ssize_t count = len(self.requests), i = 0
        cdef int64_t *used = NULL
        cdef Request request
        self.check()
        if written is not None:
            used = places_for(count)
        try:
            if used != NULL:
                numbers(written, used, count, "used lengths")
                for request in self.requests:
                    if used[i] < 0 or <uint64_t>used[i] > request.total_writable:
                        raise ValueError(
                            f"{used[i]} written of {request.total_writable} writable bytes of head "
                            f"{request._head}"
                        )
                    i += 1
            for i in range(count):
                request = at(self.requests, i)
                request.close(request.count_written() if used == NULL else <uint64_t>used[i])
        finally:
            free(used)

    cdef object left_of(self, bint writing):
        # Bytes at a cursor of each.
        cdef Py_ssize_t count = len(self.requests), i
        cdef Column out = column_of(count, b"Q"[0], sizeof(uint64_t), NULL)
        cdef uint64_t *left = <uint64_t *>out.data
        cdef Request request
        for i in range(count):
            request = at(self.requests, i)
            left[i] = request.writing.left if writing else request.reading.left
        return out.view()

    cdef int check(self) except -1:
        # Before anything is done to one of them.
        cdef Py_ssize_t i
        for i in range(len(self.requests)):
            at(self.requests, i).check()
        return 0

    cdef Py_ssize_t row_of(self, Py_ssize_t length) except -1:
        cdef Py_ssize_t count = len(self.requests)
        if length % max(count, 1) or (count == 0 and length):
            raise ValueError(f"{length} bytes are no whole rows for {count} requests")
        return length // count if count else 0

    cdef object move(
        self, Operation operation, object file, object offsets, object lengths, uint64_t unit,
        uint64_t spare, uint64_t within,
    ):
        cdef Py_ssize_t count = len(self.requests), i
        cdef int fd = PyObject_AsFileDescriptor(file)
        cdef int64_t *places
        cdef Column answers
        cdef int64_t *sizes = NULL
        cdef Move *moves = NULL
        cdef bint unsigned
        cdef Request request
        self.check()
        if unit == 0 or within > <uint64_t>INT64_MAX:
            raise ValueError(f"a unit of {unit} bytes, a file of {within}")
        places = places_for(count)
        try:
            unsigned = numbers(offsets, places, count, "offsets")
            if lengths is not None:
                sizes = places_for(count)
                numbers(lengths, sizes, count, "lengths")
            moves = <Move *>malloc((count + 1) * sizeof(Move))
            if moves == NULL:
                raise MemoryError
            for i in range(count):
                request = at(self.requests, i)
                # SAFETY: the list keeps the request, and its ring, whose thread this is, the memory.
                moves[i].pieces = request.pieces
                moves[i].cursor = &request.writing if operation == READ else &request.reading
                moves[i].length = moves[i].cursor.left
                moves[i].length -= min(spare, moves[i].length)
                if sizes != NULL:
                    if sizes[i] < 0 or <uint64_t>sizes[i] > moves[i].length:
                        raise ValueError(
                            f"{sizes[i]} bytes wanted of {moves[i].length} of head {request._head}"
                        )
                    moves[i].length = sizes[i]
                moves[i].answer = 0
                # No wrap: each is below 2^63 once it is multiplied, and a length below 2^33.
                if (
                    places[i] < 0 and not unsigned
                    or <uint64_t>places[i] > within // unit
                    or moves[i].length > within - <uint64_t>places[i] * unit
                ):
                    moves[i].answer = -EINVAL
                else:
                    moves[i].offset = <int64_t>(<uint64_t>places[i] * unit)
            with nogil:
                for i in range(count):
                    if moves[i].answer == 0:
                        carry_out(operation, fd, moves + i)
            for i in range(count):
                places[i] = moves[i].answer
            answers = column_of(count, b"q"[0], sizeof(int64_t), places)
            places = NULL
            return answers.view()
        finally:
            free(places)
            free(sizes)
            free(moves)
