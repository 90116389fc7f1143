"""C interface of what split and packed rings share; a layout fills in the methods of layout.pxd."""

from vuproc.shm.native_serving cimport NativeServing


cdef class Ring(NativeServing):
    pass
