"""An errno in words, and as the exception that it is in Python."""

from libc.string cimport strerror


cdef inline str in_words(int failure):
    return (<bytes>strerror(failure)).decode("ascii", "replace")


cdef inline object os_error(int failure):
    return OSError(failure, in_words(failure))
