"""The views of guest memory that a request has handed out; they must not outlive it.

From its end on the memory is the driver's, or somebody else's. A view that is in use as a buffer
itself (a numpy array over it) cannot be released, and a slice is a view of its own that nobody
knows of.
"""

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t

from vuproc.shm.request cimport Request, RequestOwner


cdef inline tuple hand_out_views(Request request, uint32_t first, uint32_t count, bint readonly):
    # Views of `count` pieces.
    cdef uint32_t i
    made = tuple([
        request.memory.view_host(
            <unsigned char *>request.pieces[i].iov_base, request.pieces[i].iov_len, readonly
        )
        for i in range(first, first + count)
    ])
    if request.handed_out == NULL:
        views = []
        Py_INCREF(views)
        request.handed_out = <void *>views
        request.older = request.owner.viewed
        if request.older != NULL:
            (<Request>request.older).newer = <void *>request
        request.owner.viewed = <void *>request
    (<list>request.handed_out).extend(made)
    return made


cdef inline void drop_views(Request request) noexcept:
    cdef list views = <list>request.handed_out
    Py_DECREF(views)
    request.handed_out = NULL
    if request.newer != NULL:
        (<Request>request.newer).older = request.older
    else:
        request.owner.viewed = request.older
    if request.older != NULL:
        (<Request>request.older).newer = request.newer
    request.newer = request.older = NULL
    for view in views:
        try:
            view.release()
        except BufferError:
            pass
