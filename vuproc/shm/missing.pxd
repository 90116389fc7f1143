"""For hooks that a derived class has to fill in."""


cdef extern from "missing.h" nogil:
    # Says on stderr which one is not filled in, and aborts.
    void vu_missing(const char *name)
