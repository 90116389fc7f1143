# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A driver and a device in one thread, turn by turn, of which only the device's turn is timed."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t

from vuproc.shm.clock cimport clock_ns
from vuproc.shm.native_serving cimport NativeServing
from vuproc.shm.spin cimport Spin
from vuproc.testing.ring cimport DESC_WRITE, DriverRing, Segment

cdef enum:
    MOST = 8                       # segments of a request
    TABLE_BYTES = 16 * MOST
    SLICE_NS = 1000000000

TABLE = TABLE_BYTES
"""Bytes of memory for the indirect table of one request."""


def run_turns(
    DriverRing driver not None,
    NativeServing ring not None,
    Spin spin not None,
    segments,
    *,
    uint64_t turns,
    unsigned int depth,
    uint64_t apart,
    tables=None,
):
    """Have `depth` requests of (address, bytes, device may write) segments made, served and taken
    back, `turns` times; each lies `apart` bytes behind the one before it. The seconds of the
    device's part and of the driver's.

    tables: (guest address, writable buffer) of memory for indirect tables, TABLE bytes a request;
    with it each request takes one descriptor of the ring. The ring has a native device, and nothing
    to do that takes Python. RuntimeError if it breaks, or does not serve all; ValueError for too
    many segments, or too little memory for tables.
    """
    cdef Py_buffer room
    cdef char *table = NULL
    cdef uint64_t address = 0
    if tables is None:
        return timed(driver, ring, spin, segments, turns, depth, apart, NULL, 0)
    address, buffer = tables
    PyObject_GetBuffer(buffer, &room, PyBUF_WRITABLE)
    try:
        if room.len < <Py_ssize_t>(TABLE_BYTES * depth):
            raise ValueError(f"{room.len} bytes for {depth} tables of {TABLE}")
        table = <char *>room.buf
        return timed(driver, ring, spin, segments, turns, depth, apart, table, address)
    finally:
        PyBuffer_Release(&room)


cdef timed(
    DriverRing driver,
    NativeServing ring,
    Spin spin,
    segments,
    uint64_t turns,
    unsigned int depth,
    uint64_t apart,
    char *tables,
    uint64_t address,
):
    cdef Segment chain[MOST]
    cdef Segment moved[MOST]
    cdef unsigned int count = <unsigned int>len(segments), i, j
    cdef uint64_t turn, began, filled, served, device = 0, driving = 0
    cdef uint32_t name = 0, length = 0
    cdef int got = 0
    if not 0 < count <= MOST:
        raise ValueError(f"{count} segments are not 1 to {MOST}")
    if not ring.is_quiet():
        raise RuntimeError("the ring has something to do that takes Python")
    for i in range(count):
        chain[i].addr, chain[i].len, writable = segments[i]
        chain[i].flags = DESC_WRITE if writable else 0
    with nogil:
        # It looks for itself.
        driver.disarm_calls()
        for turn in range(turns):
            began = clock_ns()
            for i in range(depth):
                for j in range(count):
                    moved[j] = chain[j]
                    moved[j].addr += i * apart
                if tables == NULL:
                    got = driver.put(moved, count)
                else:
                    # SAFETY: i < depth, and count <= MOST.
                    got = driver.put_indirect(
                        moved, count, tables + i * TABLE_BYTES, address + i * TABLE_BYTES
                    )
                if got < 0:
                    break
            if got < 0:
                break
            driver.publish_entries()
            filled = clock_ns()
            got = ring.serve_quietly(<int>depth + 1, SLICE_NS, spin)
            served = clock_ns()
            if got != 0:
                got = -1
                break
            for i in range(depth):
                if driver.reap_one(&name, &length) != 1:
                    got = -1
                    break
            if got < 0:
                break
            device += served - filled
            driving += clock_ns() - served + filled - began
    if got < 0:
        raise RuntimeError("the ring did not serve all of a turn, or the driver could not go on")
    return device / 1e9, driving / 1e9
