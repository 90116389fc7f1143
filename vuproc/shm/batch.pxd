"""C interface of a batch: the requests that one call of `handle_batch` gets."""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from cpython.list cimport PyList_GET_ITEM

from vuproc.shm.request cimport Request
from vuproc.shm.transfers cimport Operation


@cython.final
cdef class Column:
    # What a memoryview of an integer for each request is made over.
    cdef Py_ssize_t count
    cdef Py_ssize_t size           # bytes of an integer
    cdef char format[2]
    cdef char *data                # from malloc; its own

    cdef object view(self)


@cython.final
cdef class Batch:
    cdef list requests             # Requests of one ring

    cdef int check(self) except -1
    cdef object left_of(self, bint writing)
    cdef Py_ssize_t row_of(self, Py_ssize_t length) except -1
    cdef int put_from(self, int64_t offset, object data, bint rows) except -1
    cdef object move(
        self, Operation operation, object file, object offsets, object lengths, uint64_t unit,
        uint64_t spare, uint64_t within,
    )


cdef Batch batch_of(list requests)


cdef inline Request at(list requests, Py_ssize_t i):
    # SAFETY: a list of Requests and nothing else, which is longer.
    return <Request><void *>PyList_GET_ITEM(requests, i)
