# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""A pair of network queues without Python: frames to a tap, back to their sender, or to a batch."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset
from posix.uio cimport iovec, writev
from posix.unistd cimport read, write

from vuproc.shm.atomics cimport vu_load_relaxed32
from vuproc.shm.native cimport IOV_MAX, NativeDevice, copy_in, copy_out
from vuproc.shm.request cimport Chain, RequestOwner

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(object o)

cdef enum:
    NOWHERE = 0
    LOOPBACK = 1
    TAP = 2
    FRAMES = 3
    ADDRESS = 6                    # bytes of one
    TAG_AT = 12                    # of a VLAN's tag in a frame

NULL_KIND, LOOPBACK_KIND, TAP_KIND, FRAMES_KIND = NOWHERE, LOOPBACK, TAP, FRAMES
BOUNDS = HEADER_BYTES, MAX_FRAME, MOST_MERGED, MOST_TAKEN, TABLE
"""Numbers that others have as well, and that are to be the same."""


# The header of a frame without offloads, but for `num_buffers`: all zeros (5.1.6.4.1).
cdef uint8_t[HEADER_BYTES] BARE


cdef int fill_table(uint8_t *to, object addresses, int most) except -1:
    # One address behind the other; their number.
    cdef int count = 0
    for address in addresses:
        if count == most or len(address) != ADDRESS:
            raise ValueError(f"{len(addresses)} addresses, of at most {most} of {ADDRESS} bytes")
        memcpy(to + ADDRESS * count, PyBytes_AS_STRING(address), ADDRESS)
        count += 1
    return count


cdef bint is_among(const uint8_t *address, const uint8_t *table, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        if memcmp(address, table + ADDRESS * i, ADDRESS) == 0:
            return True
    return False


@cython.final
cdef class Frames:
    """Frames that came together, each the bytes that were sent. They stay what they are."""

    def __init__(self, frames=()):
        cdef list every = [memoryview(frame) for frame in frames]
        cdef bytes places = PyBytes_FromStringAndSize(NULL, len(every) * sizeof(uint32_t))
        # SAFETY: nobody else has the object yet.
        cdef uint32_t *place = <uint32_t *>PyBytes_AS_STRING(places)
        cdef uint64_t end = 0
        cdef Py_ssize_t i, size
        for i in range(len(every)):
            size = every[i].nbytes
            if not 0 < size <= MAX_FRAME:
                raise ValueError(f"a frame of {size} bytes is not 1 to {MAX_FRAME}")
            end += size
            if end > UINT32_MAX:
                raise ValueError(f"{i + 1} frames have {end} bytes together, which is too many")
            place[i] = <uint32_t>end
        # Whoever has a view of something cannot change its size.
        self.keep(b"".join(every), places)

    cdef int keep(self, bytes block, bytes places) except -1:
        # `block` has what `places` says, at least. Neither is written to as long as we have it.
        self.block = block
        self.places = places
        self.count = len(places) // <Py_ssize_t>sizeof(uint32_t)
        self.first = <const uint8_t *>PyBytes_AS_STRING(block)
        self.place = <const uint32_t *>PyBytes_AS_STRING(places)
        self._data = memoryview(block)[: self.place[self.count - 1] if self.count else 0]
        return 0

    def __len__(self):
        return self.count

    def __getitem__(self, Py_ssize_t index):
        if index < 0:
            index += self.count
        if not 0 <= index < self.count:
            raise IndexError(f"frame {index} of {self.count}")
        return self._data[self.place[index - 1] if index else 0 : self.place[index]]

    def __iter__(self):
        return map(self.__getitem__, range(self.count))

    @property
    def data(self):
        """All of them, one behind the other."""
        return self._data

    @property
    def ends(self):
        """Where in `data` each of them ends, and the next begins."""
        cdef Py_ssize_t i
        if self._ends is None:
            self._ends = tuple([self.place[i] for i in range(self.count)])
        return self._ends


cdef inline bint is_down(NativePair pair) noexcept nogil:
    return pair._has_down and vu_load_relaxed32(pair._down.buf) != 0


@cython.final
cdef class NativePair(NativeDevice):
    """Serves the queues `receive`, from which it pulls, and `transmit`.

    on_lost: counts a frame that was thrown away for a queue that has no ring. fd: of the tap, open
    without waiting and with headers. down: 4 bytes of memory which are not zero while the link is
    down. on_frames: called with the Frames that the driver has sent.
    """

    def __cinit__(
        self, int receive, int kind, object on_lost, int fd=-1, object down=None,
        object on_frames=None,
    ):
        if not NOWHERE <= kind <= FRAMES:
            raise ValueError(f"there is no kind {kind}")
        self.receive = receive
        self.transmit = receive + 1
        self.kind = kind
        self.is_quick = kind == NOWHERE
        self.fd = fd
        self.most = 1
        self.on_lost = on_lost
        self.on_frames = on_frames
        self.wanted.all_frames = True
        self.scratch = <uint8_t *>malloc(HEADER_BYTES + MAX_FRAME)
        if self.scratch == NULL:
            raise MemoryError
        if down is not None:
            PyObject_GetBuffer(down, &self._down, PyBUF_SIMPLE)
            self._has_down = True
            if self._down.len < 4:
                raise ValueError(f"{self._down.len} bytes say whether the link is down, not 4")
        if kind == FRAMES:
            self.make_room_for_frames()

    def __dealloc__(self):
        cdef int i
        for i in range(MOST_MERGED):
            free(self.held[i].pieces)
        free(self.scratch)
        if self._has_down:
            PyBuffer_Release(&self._down)

    # What the Python half says.

    def merge(self, int most):
        """A frame may take so many receive buffers, 1 to MOST_MERGED."""
        self.most = max(1, min(most, MOST_MERGED))

    def want_all(self):
        """The driver is to have all frames."""
        self.wanted.all_frames = True

    def want(
        self, bint broadcast, object unicast, object multicast, object vlans,
    ):
        """The driver is to have frames to these sets of addresses, None for all, and of the VLANs
        with a bit in these 512 bytes, None for all.
        """
        cdef Wanted wanted
        memset(&wanted, 0, sizeof(wanted))
        wanted.broadcast = broadcast
        wanted.any_unicast = unicast is None
        wanted.any_multicast = multicast is None
        wanted.by_vlan = vlans is not None
        wanted.unicast_count = fill_table(&wanted.unicast[0][0], unicast or (), TABLE + 1)
        wanted.multicast_count = fill_table(&wanted.multicast[0][0], multicast or (), TABLE)
        if vlans is not None:
            if len(vlans) != sizeof(wanted.vlans):
                raise ValueError(f"{len(vlans)} bytes of VLANs")
            memcpy(wanted.vlans, PyBytes_AS_STRING(vlans), sizeof(wanted.vlans))
        self.wanted = wanted

    def pump(self, int budget):
        """Give the driver what the tap has; how many frames that were, `budget` at most."""
        cdef int got = 0
        cdef Py_ssize_t size
        with nogil:
            self.show(self.receive)
            while got < budget:
                size = read(self.fd, self.scratch, HEADER_BYTES + MAX_FRAME)
                if size < 0:
                    break  # nothing, or the interface is down
                got += 1
                if size > HEADER_BYTES:
                    self.offer(self.scratch, self.scratch + HEADER_BYTES, size - HEADER_BYTES)
            self.show(self.receive)
        return got

    def send(self, object frames):
        """Give the driver these frames, Frames or bytes-like objects; how many it got."""
        cdef Py_buffer view
        cdef int sent = 0
        if type(frames) is Frames:
            return self.send_batch(frames)
        for frame in frames:
            PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE)
            try:
                if not 0 < view.len <= MAX_FRAME:
                    raise ValueError(f"a frame of {view.len} bytes is not 1 to {MAX_FRAME}")
                sent += self.offer(BARE, <const uint8_t *>view.buf, view.len)
            finally:
                PyBuffer_Release(&view)
        self.show(self.receive)
        return sent

    cdef int send_batch(self, Frames frames) except -1:
        cdef const uint32_t *place = frames.place
        cdef const uint8_t *first = frames.first
        cdef Py_ssize_t count = frames.count, i
        cdef uint32_t at = 0
        cdef int sent = 0
        with nogil:
            for i in range(count):
                # SAFETY: `Frames.keep` has the block, and the places are ascending and in it.
                sent += self.offer(BARE, first + at, place[i] - at)
                at = place[i]
            self.show(self.receive)
        return sent

    def give_all_back(self):
        """Give back the receive buffers that were too few for the last frame."""
        self.forget()

    # The driver's frames.

    cdef int64_t serve(self, Chain *chain) noexcept nogil:
        cdef uint64_t size = chain.readable
        cdef Py_ssize_t sent
        if size <= HEADER_BYTES or size > HEADER_BYTES + MAX_FRAME or is_down(self):
            self.lose(chain.queue)
            return 0
        if self.kind == TAP:
            if chain.readable_count <= IOV_MAX:
                # The kernel reads the header, and checks it.
                sent = writev(self.fd, chain.pieces, <int>chain.readable_count)
            else:
                copy_out(chain, 0, self.scratch, size)
                sent = write(self.fd, self.scratch, size)
            if sent != <Py_ssize_t>size:
                self.lose(chain.queue)
        elif self.kind == LOOPBACK:
            self.offer(BARE, self.frame_of(chain, self.scratch), size - HEADER_BYTES)
        elif self.kind == FRAMES:
            size -= HEADER_BYTES
            if self.gathered == MOST_FRAMES or self.end() + size > BATCH_BYTES:
                self.hand_over()
            self.frame_of(chain, <uint8_t *>self.room + self.end())
            self.ends[self.gathered] = <uint32_t>(self.end() + size)
            self.gathered += 1
        else:
            # Counted with others: that takes longer than all else of it.
            self.uncounted += 1
            if self.uncounted == MOST_UNCOUNTED:
                self.count_dropped()
        return 0

    cdef const uint8_t *frame_of(self, const Chain *chain, uint8_t *to) noexcept nogil:
        # Copy what is behind the header, which the caller has compared with the room; the copy.
        cdef iovec *piece = chain.pieces
        if chain.readable_count == 1:
            # SAFETY: one piece has all of the readable bytes, more than a header's.
            memcpy(to, <uint8_t *>piece.iov_base + HEADER_BYTES, chain.readable - HEADER_BYTES)
        else:
            copy_out(chain, HEADER_BYTES, to, chain.readable - HEADER_BYTES)
        return to

    cdef uint64_t end(self) noexcept nogil:
        return self.ends[self.gathered - 1] if self.gathered else 0

    cdef void submit(self, int queue) noexcept nogil:
        if queue != self.transmit:
            return
        self.count_dropped()
        if self.gathered:
            self.hand_over()
        if self.kind == LOOPBACK:
            self.show(self.receive)

    cdef void hand_over(self) noexcept nogil:
        with gil:
            try:
                self.hand_over_now()
            except BaseException:
                self.fail(5)  # EIO

    cdef int hand_over_now(self) except -1:
        cdef Frames frames = Frames.__new__(Frames)
        cdef bytes places = PyBytes_FromStringAndSize(
            <const char *>self.ends, self.gathered * sizeof(uint32_t)
        )
        self.gathered = 0
        frames.keep(self.block, places)
        try:
            self.on_frames(frames)
        finally:
            frames = None
            if Py_REFCNT(self.block) > 1:
                # Somebody keeps what came: it is not to change.
                self.make_room_for_frames()
        return 0

    cdef int make_room_for_frames(self) except -1:
        # SAFETY: nobody else has the object as long as the room is written to.
        self.block = PyBytes_FromStringAndSize(NULL, BATCH_BYTES)
        self.room = PyBytes_AS_STRING(self.block)
        return 0

    cdef void settle(self, int queue) noexcept nogil:
        # Nothing outside of here touches guest memory.
        if queue == self.receive:
            self.held_count = 0

    cdef void count_dropped(self) noexcept nogil:
        if self.uncounted:
            self.drop(self.transmit, self.uncounted)
        self.uncounted = 0

    cdef void lose(self, int queue) noexcept nogil:
        # A frame was thrown away. Without a ring there is nothing here that counts it.
        if 0 <= queue < self.queues and self.served[queue].ring != NULL:
            # As `drop`, without a call in between: it may come for each frame.
            (<RequestOwner>self.served[queue].ring).native_dropped(1)
            return
        with gil:
            try:
                self.on_lost(queue)
            except Exception:
                self.fail(5)  # EIO

    # Frames for the driver.

    cdef bint offer(
        self, const uint8_t *header, const uint8_t *frame, uint64_t length
    ) noexcept nogil:
        # A frame with its header, neither of them in guest memory; whether the driver has it.
        if is_down(self) or not self.passes(frame, length):
            return False
        if self.deliver(header, frame, length):
            return True
        self.lose(self.receive)
        return False

    cdef bint passes(self, const uint8_t *frame, uint64_t length) noexcept nogil:
        cdef Wanted *wanted = &self.wanted
        cdef int vlan
        if wanted.all_frames:
            return True
        if length < ADDRESS:
            return False
        if (
            wanted.by_vlan and length >= TAG_AT + 4
            and frame[TAG_AT] == 0x81 and frame[TAG_AT + 1] == 0
        ):
            vlan = (frame[TAG_AT + 2] & 15) << 8 | frame[TAG_AT + 3]
            if not wanted.vlans[vlan >> 3] >> (vlan & 7) & 1:
                return False
        if frame[0] & 1:
            if memcmp(frame, b"\xff\xff\xff\xff\xff\xff", ADDRESS) == 0:
                return wanted.broadcast
            return wanted.any_multicast or is_among(
                frame, &wanted.multicast[0][0], wanted.multicast_count
            )
        return wanted.any_unicast or is_among(frame, &wanted.unicast[0][0], wanted.unicast_count)

    cdef bint take(self, Chain *chain) noexcept nogil:
        # A receive buffer that a frame may begin in; False: there is none.
        cdef int i
        for i in range(MOST_TAKEN):
            if self.pull(self.receive, chain) <= 0:
                return False
            if chain.writable >= HEADER_BYTES:
                return True
            # 5.1.6.3.2: each has room for a header at least. The driver gets it back unused.
            self.complete(self.receive, chain.head, 0)
        return False

    cdef bint hold(self, Chain *chain) noexcept nogil:
        # Keep one, of which the next `pull` would forget the pieces; False: there is no memory.
        cdef Held *held = self.held + self.held_count
        cdef iovec *pieces
        if chain.writable_count > held.room:
            pieces = <iovec *>realloc(held.pieces, chain.writable_count * sizeof(iovec))
            if pieces == NULL:
                self.give_back(self.receive, chain.head, chain.order)
                return False
            held.pieces = pieces
            held.room = chain.writable_count
        memcpy(
            held.pieces, chain.pieces + chain.readable_count, chain.writable_count * sizeof(iovec)
        )
        held.chain = chain[0]
        held.chain.pieces = held.pieces
        held.chain.readable_count = 0
        held.chain.readable = 0
        self.held_count += 1
        return True

    cdef bint deliver(
        self, const uint8_t *header, const uint8_t *frame, uint64_t length
    ) noexcept nogil:
        # In as many buffers as they take; False: there are too few.
        cdef Chain chain
        cdef uint64_t needed = HEADER_BYTES + length, room = 0, at = 0, here
        cdef int count = 0, i
        if self.held_count == 0:
            if not self.take(&chain):
                return False
            if chain.writable >= needed:
                # As nearly all do.
                self.fill(&chain, header, 1, frame, length)
                self.together(self.receive, 1)
                self.complete(self.receive, chain.head, needed)
                return True
            if not self.hold(&chain):
                return False
        while room < needed:
            if count == self.most:
                return False
            if count == self.held_count and not (self.take(&chain) and self.hold(&chain)):
                return False
            room += self.held[count].chain.writable
            count += 1
        self.together(self.receive, count)
        for i in range(count):
            # All but the last are filled, as 5.1.6.4.1 has it.
            if i == 0:
                at = self.fill(&self.held[0].chain, header, count, frame, length)
                here = HEADER_BYTES + at
            else:
                here = copy_in(&self.held[i].chain, 0, frame + at, length - at)
                at += here
            self.complete(self.receive, self.held[i].chain.head, here)
        self.let_go(count)
        return True

    cdef uint64_t fill(
        self, const Chain *chain, const uint8_t *header, int count, const uint8_t *frame,
        uint64_t length,
    ) noexcept nogil:
        # Write the header of a frame in `count` buffers into the first of them, and what it has
        # room for of the frame: so many bytes of that.
        cdef uint8_t *to = <uint8_t *>chain.pieces[chain.readable_count].iov_base
        cdef uint8_t own[HEADER_BYTES]
        memcpy(own, header, HEADER_BYTES - 2)
        own[HEADER_BYTES - 2] = <uint8_t>count
        own[HEADER_BYTES - 1] = 0
        if chain.pieces[chain.readable_count].iov_len >= HEADER_BYTES + length:
            # SAFETY: so many bytes of a piece that the ring checked; `take` saw that there is one.
            memcpy(to, own, HEADER_BYTES)
            memcpy(to + HEADER_BYTES, frame, length)
            return length
        copy_in(chain, 0, own, HEADER_BYTES)
        return copy_in(chain, HEADER_BYTES, frame, length)

    cdef void let_go(self, int count) noexcept nogil:
        # The first so many of what is held are the driver's again.
        cdef Held spare
        cdef int i
        self.held_count -= count
        for i in range(self.held_count):
            # Both keep their room for pieces.
            spare = self.held[i]
            self.held[i] = self.held[i + count]
            self.held[i + count] = spare

    cdef void forget(self) noexcept nogil:
        cdef int i
        for i in range(self.held_count):
            self.give_back(self.receive, self.held[i].chain.head, self.held[i].chain.order)
        self.held_count = 0
