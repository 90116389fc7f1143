# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The guest's end of a stream of virtio-vsock, in native code, so that the device is measured.

What it sends are the bytes that happen to lie in its memory, in packets of at most 64 KiB; what it
receives goes into buffers of 4 KiB with the header, both as with Linux. It looks at no content.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport read, write

from vuproc.shm.atomics cimport vu_pause
from vuproc.shm.clock cimport clock_ns
from vuproc.testing.ring cimport DESC_WRITE, DriverRing, Segment

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    short POLLIN

cdef enum:
    SLOTS = 32                     # packets on their way at a time
    DATA = 65536                   # bytes of one, at most
    ROOM = 65536 + 4096            # of guest memory for one, its header at the end
    BUFFERS = 64                   # to receive into
    BUFFER = 4096
    OWN_CREDIT = 262144
    SPINS = 2048                   # looks between two at the clock
    WAIT_MS = 50
    RX = 0
    TX = 1
    OP_RST = 3
    OP_RW = 5
    OP_CREDIT_UPDATE = 6
    OP_CREDIT_REQUEST = 7

MEMORY = SLOTS * ROOM + BUFFERS * BUFFER


cdef packed struct Header:
    uint64_t src_cid
    uint64_t dst_cid
    uint32_t src_port
    uint32_t dst_port
    uint32_t length
    uint16_t kind
    uint16_t op
    uint32_t flags
    uint32_t buf_alloc
    uint32_t fwd_cnt


cdef class Stream:
    """One connection, of a guest with this CID, on rings that nobody else uses.

    memory: a buffer with MEMORY free bytes from `arena` on, whose guest address is `address`.
    kicks, calls: descriptors of both queues, borrowed.
    """

    cdef DriverRing rx, tx
    cdef int kicks[2]
    cdef int calls[2]
    cdef object _memory
    cdef char *arena
    cdef uint64_t address, received, sent, told, stall_ns
    cdef uint32_t peer_alloc, peer_fwd
    cdef Header own
    cdef uint16_t slots[SLOTS]
    cdef unsigned int free
    cdef uint16_t slot_of_name[2][32768]
    cdef bint polls, owes, offered
    cdef readonly int last_op
    cdef readonly uint32_t peer_port

    def __cinit__(self, DriverRing rx not None, DriverRing tx not None, object memory, *,
                  size_t arena, uint64_t address, kicks, calls, bint polls, uint64_t cid,
                  uint32_t port, uint32_t peer_port, double stall_s=30.0):
        cdef Py_buffer view
        cdef int i
        self.rx = rx
        self.tx = tx
        self.kicks = kicks
        self.calls = calls
        self._memory = memoryview(memory)
        PyObject_GetBuffer(self._memory, &view, PyBUF_WRITABLE)
        length = <size_t>view.len
        self.arena = <char *>view.buf
        PyBuffer_Release(&view)
        if arena > length or <size_t>MEMORY > length - arena:
            raise ValueError(f"no {MEMORY} bytes at {arena:#x} of {length}")
        # SAFETY: checked against the buffer, which self._memory keeps exported.
        self.arena += arena
        self.address = address
        self.polls = polls
        self.stall_ns = <uint64_t>(stall_s * 1e9)
        self.own.src_cid = cid
        self.own.dst_cid = 2
        self.own.src_port = port
        self.own.dst_port = peer_port
        self.own.kind = 1
        self.own.buf_alloc = OWN_CREDIT
        for i in range(SLOTS):
            self.slots[i] = <uint16_t>i
        self.free = SLOTS
        for i in range(BUFFERS):
            self.offer(<uint16_t>i)
        self.publish(RX)

    def say(self, uint16_t op, uint32_t flags=0):
        """Send a packet without data."""
        self.own.flags = flags
        if not self.put(op, 0):
            raise RuntimeError("no room for a packet")
        self.own.flags = 0
        self.publish(TX)

    def answer_to(self, uint32_t port):
        """What follows goes to this port of the host's."""
        self.own.dst_port = port

    def await_op(self, int op):
        """Until a packet with this operation came."""
        self.last_op = 0
        while self.last_op != op:
            self.run(self.sent, self.received, once=True)

    def send(self, uint64_t count):
        """Send so many bytes, as credit allows; they are taken by the device at the end."""
        self.run(self.sent + count, self.received)

    def receive(self, uint64_t count):
        """Receive so many bytes."""
        self.run(self.sent, self.received + count)

    cdef int run(self, uint64_t sent, uint64_t received, bint once=False) except -1:
        cdef int got
        cdef uint64_t end = clock_ns() + self.stall_ns, before
        while True:
            before = self.sent + self.received
            with nogil:
                got = self.turn(sent, received, once)
            if got > 0:
                return 0
            if got < 0:
                raise RuntimeError(
                    "the connection was reset" if got == -1 else "a descriptor or a ring is broken"
                )
            if self.sent + self.received != before:
                end = clock_ns() + self.stall_ns
            elif clock_ns() > end:
                raise RuntimeError(f"no byte in {self.stall_ns / 1e9:g} s")

    cdef int turn(self, uint64_t sent, uint64_t received, bint once) noexcept nogil:
        # 1: done; 0: look at the clock; -1, -2: it has ended.
        cdef uint32_t name = 0, length = 0, part
        cdef int got
        cdef unsigned int spins = 0
        cdef bint busy
        cdef uint64_t left
        while True:
            busy = False
            while True:
                got = self.tx.reap_one(&name, &length)
                if got < 0:
                    return -2
                if got == 0:
                    break
                self.slots[self.free] = self.slot_of_name[TX][name]
                self.free += 1
                busy = True
            while True:
                got = self.rx.reap_one(&name, &length)
                if got < 0:
                    return -2
                if got == 0:
                    break
                got = self.take(self.slot_of_name[RX][name], length)
                if got < 0:
                    return got
                self.offer(self.slot_of_name[RX][name])
                busy = True
            if busy:
                self.publish(RX)
            if self.owes or self.received - self.told >= OWN_CREDIT // 4:
                if self.put(OP_CREDIT_UPDATE, 0):
                    self.owes = False
            while self.sent < sent and self.free:
                left = self.peer_alloc - <uint32_t>(<uint32_t>self.sent - self.peer_fwd)
                part = <uint32_t>min(min(left, <uint64_t>DATA), sent - self.sent)
                if left > self.peer_alloc or part == 0:
                    break
                self.sent += part
                self.put(OP_RW, part)
            self.publish(TX)
            if once and self.last_op:
                return 1
            if not once and self.sent == sent and self.received >= received and self.free == SLOTS:
                return 1
            if busy:
                spins = 0
                continue
            spins += 1
            if not self.polls:
                if self.sleep() < 0:
                    return -2
                return 0
            if spins == SPINS:
                return 0
            vu_pause()

    cdef int sleep(self) noexcept nogil:
        cdef pollfd waits[2]
        cdef uint64_t count
        cdef int i
        if self.rx.arm_calls() or self.tx.arm_calls():
            return 0
        for i in range(2):
            waits[i].fd = self.calls[i]
            waits[i].events = POLLIN
            waits[i].revents = 0
        if poll(waits, 2, WAIT_MS) < 0:
            return 0 if errno == EINTR else -1
        for i in range(2):
            if waits[i].revents and read(self.calls[i], &count, sizeof(count)) <= 0:
                return -1
        self.rx.disarm_calls()
        self.tx.disarm_calls()
        return 0

    cdef int take(self, uint16_t slot, uint32_t length) noexcept nogil:
        # What the device wrote into a buffer.
        cdef Header header
        if length < sizeof(Header):
            return 0
        # SAFETY: a buffer of the checked arena, of more bytes than that.
        memcpy(&header, self.arena + SLOTS * ROOM + <uint64_t>slot * BUFFER, sizeof(Header))
        self.peer_alloc = header.buf_alloc
        self.peer_fwd = header.fwd_cnt
        self.peer_port = header.src_port
        self.last_op = header.op
        if header.op == OP_RST:
            return -1
        if header.op == OP_RW:
            self.received += header.length
        if header.op == OP_CREDIT_REQUEST:
            self.owes = True
        return 0

    cdef void offer(self, uint16_t slot) noexcept nogil:
        cdef Segment one
        one.addr = self.address + SLOTS * ROOM + <uint64_t>slot * BUFFER
        one.len = BUFFER
        one.flags = DESC_WRITE
        self.slot_of_name[RX][self.rx.put(&one, 1)] = slot

    cdef bint put(self, uint16_t op, uint32_t length) noexcept nogil:
        cdef Segment parts[2]
        cdef uint64_t at
        cdef uint16_t slot
        if not self.free:
            return False
        self.free -= 1
        slot = self.slots[self.free]
        at = <uint64_t>slot * ROOM
        self.own.op = op
        self.own.length = length
        self.own.fwd_cnt = <uint32_t>self.received
        self.told = self.received
        # SAFETY: a slot of the checked arena, with DATA bytes and room for a header behind them.
        memcpy(self.arena + at + DATA, &self.own, sizeof(Header))
        parts[0].addr = self.address + at + DATA
        parts[0].len = sizeof(Header)
        parts[0].flags = 0
        parts[1].addr = self.address + at
        parts[1].len = length
        parts[1].flags = 0
        # Two descriptors for each slot are there: the rings have 128.
        self.slot_of_name[TX][self.tx.put(parts, 2 if length else 1)] = slot
        return True

    cdef void publish(self, int ring) noexcept nogil:
        cdef uint64_t one = 1
        if self.rx.publish_entries() if ring == RX else self.tx.publish_entries():
            write(self.kicks[ring], &one, sizeof(one))
