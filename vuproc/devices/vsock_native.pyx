# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The data of streams without Python: packets of the guest's straight to the host's socket, and what
came from there into the guest's buffers, several at a time.

All that it knows is in the table, in the words and by the rules that `vsock_table` has: what several
packets change is one step, which is made if the driver has seen the ends of all of them. It sees
them by one store, so it is enough to name the first.

Bytes that are sent straight from the guest's memory have gone before that step. The kernel has
stored how many (`vsock_transfer`), and whoever follows a worker that died in between stores that
number as the connection's `skip`: so many bytes of the next packets, which are the same ones, have
gone already.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from vuproc.shm.atomics cimport vu_note64
from vuproc.shm.native cimport NativeDevice, copy_in, copy_out, cut_pieces
from vuproc.shm.native_pulling cimport NativePulling
from vuproc.shm.request cimport Chain, Request

cdef extern from "<sys/socket.h>" nogil:
    cdef struct mmsghdr:
        pass
    int sendmmsg(int file, mmsghdr *messages, unsigned int count, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

# virtio 1.3, 5.10 (spec/vsock.py has these for Python).
cdef enum:
    RX = 0
    TX = 1
    HOST_CID = 2
    STREAM = 1
    OP_RW = 5
    OP_CREDIT_UPDATE = 6
    SHUT_RECEIVE = 1
    SHUT_SEND = 2

# vsock_connection.py has these, vsock_table.py the place of the tag, vsock_transfer.py the last.
cdef enum:
    STATE_OPEN = 3
    OWES_CREDIT = 4
    PACKET_MOST = 65536
    HEAD_SHIFT = 16
    QUEUE_SHIFT = 48
    DIRECT = 3

cdef enum:
    MOST_PACKETS = 32              # of a step
    MOST_PIECES = 128              # of the bytes that one call sends
    MOST_BYTES = 262144            # after which they are sent
    MOST_SLOTS = 64

# Words of a record and of the head, in the order of WORDS and HEAD_WORDS.
cdef enum:
    STATE, KIND, GUEST_PORT, HOST_PORT, OWES, OUT_END, OUT_BEGIN, PREAMBLE, GOT, PASSED, TOLD
    GUEST_SHUT, IN_END, IN_BEGIN, GIVEN, DEAF, PEER_ALLOC, PEER_FWD, SKIP, RECORD_WORDS
cdef enum:
    MOVING, SLOT, BASE, END, MESSAGE, HEAD_WORDS_COUNT

WORDS = (
    "state", "kind", "guest_port", "host_port", "owes", "out_end", "out_begin", "preamble", "got",
    "passed", "told", "guest_shut", "in_end", "in_begin", "given", "deaf", "peer_alloc", "peer_fwd",
    "skip",
)
HEAD_WORDS = ("moving", "slot", "base", "end", "message")


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


cdef struct Area:
    # A ring of bytes.
    uint8_t *bytes
    uint64_t size


cdef struct Batch:
    # Packets of one connection, whose step is not made yet.
    int slot
    int packets
    int pieces
    uint64_t bytes
    uint32_t peer_alloc            # of the last of them
    uint32_t peer_fwd
    uint16_t heads[MOST_PACKETS]
    uint32_t written[MOST_PACKETS]
    iovec part[MOST_PIECES]


cdef class NativeVsock(NativeDevice):
    """Serves the streams of a table."""

    cdef object memory             # what the words and areas lie in, exported
    cdef uint64_t *words
    cdef uint64_t commits          # where a step is written down, and how many words it has
    cdef int noted
    cdef int slots
    cdef uint64_t record_of[MOST_SLOTS]
    cdef Area to_host[MOST_SLOTS]
    cdef Area to_guest[MOST_SLOTS]
    cdef int files[MOST_SLOTS]     # borrowed; -1: there is no socket
    cdef uint64_t at[RECORD_WORDS]
    cdef uint64_t head_at[HEAD_WORDS_COUNT]
    cdef uint64_t cid, buffer
    cdef uint64_t fed              # slots with something left to do, a bit each
    cdef Batch batch
    cdef readonly bint beyond_credit   # what `take` gave for Python is data that breaks the rule

    def __cinit__(self, memory, *, places, head_places, commits, records, to_host, to_guest,
                  uint64_t cid, uint64_t buffer):
        cdef Py_buffer view
        cdef uint8_t *begin
        cdef uint64_t length, start, size
        cdef int slot
        self.memory = memoryview(memory)
        PyObject_GetBuffer(self.memory, &view, PyBUF_WRITABLE)
        begin = <uint8_t *>view.buf
        length = view.len
        PyBuffer_Release(&view)
        # SAFETY: `self.memory` keeps it exported. All below are places inside it, checked here.
        self.words = <uint64_t *>begin
        self.slots = len(records)
        if self.slots > MOST_SLOTS or max(list(records) + list(head_places) + [commits]) > length // 16:
            raise ValueError("words beyond their memory")
        for slot in range(self.slots):
            self.record_of[slot] = records[slot]
            self.files[slot] = -1
            start, size = to_host[slot]
            self.to_host[slot].bytes = begin + start
            self.to_host[slot].size = size
            if size == 0 or start + size > length:
                raise ValueError("an area beyond its memory")
            start, size = to_guest[slot]
            self.to_guest[slot].bytes = begin + start
            self.to_guest[slot].size = size
            if size == 0 or start + size > length:
                raise ValueError("an area beyond its memory")
        for slot, place in enumerate(places):
            self.at[slot] = place
        for slot, place in enumerate(head_places):
            self.head_at[slot] = place
        self.commits = commits
        self.cid = cid
        self.buffer = buffer

    def know(self, int slot, int fd):
        """The connection in a slot has this socket, borrowed; -1: it has none any more."""
        if 0 <= slot < self.slots:
            self.files[slot] = fd

    def take(self, int most):
        """Pass on what the guest has sent on streams, up to `most` packets: the first that is for
        Python, if there is one, and whether there may be more.
        """
        cdef Chain chain
        cdef int got = 1
        cdef bint ours = True
        self.beyond_credit = False
        with nogil:
            while most > 0 and ours:
                got = self.pull(TX, &chain)
                if got <= 0:
                    break
                ours = self.add(&chain)
                most -= 1
            self.send()
        if not ours:
            # SAFETY: nothing was pulled from this queue since.
            return (<NativePulling>self.rings[TX]).as_request(&chain), True
        return None, got > 0

    def take_fed(self):
        """The slots with something to do, for either side, after what was taken since the last time.
        """
        cdef uint64_t fed = self.fed
        self.fed = 0
        return [slot for slot in range(self.slots) if fed >> slot & 1]

    def deliver(self, int slot, int most):
        """Give the guest what there is for it on a stream, in at most so many packets; their number.
        """
        cdef int count = 0
        if 0 <= slot < self.slots:
            with nogil:
                count = self.fill(slot, most)
        return count

    # A word of a record or of the head. A store is one, and in its place among the others.

    cdef uint64_t get(self, int slot, int word) noexcept nogil:
        return self.words[self.record_of[slot] + self.at[word]]

    cdef void note(self, int slot, int word, uint64_t value) noexcept nogil:
        self.note_at(self.record_of[slot] + self.at[word], value)

    cdef void note_at(self, uint64_t place, uint64_t value) noexcept nogil:
        # SAFETY: a step here has fewer words than there is room for (COMMITTED_MOST).
        vu_note64(self.words + self.commits + 2 * self.noted, place)
        vu_note64(self.words + self.commits + 2 * self.noted + 1, value)
        self.noted += 1

    cdef void finish(self, int queue) noexcept nogil:
        # Make the step of the batch, as `Table.finish` does.
        cdef Batch *batch = &self.batch
        cdef uint64_t *step = self.words + self.commits
        cdef int i
        vu_note64(
            self.words,
            <uint64_t>self.noted
            | <uint64_t>batch.heads[0] << HEAD_SHIFT
            | <uint64_t>(queue + 1) << QUEUE_SHIFT,
        )
        self.together(queue, batch.packets)
        for i in range(batch.packets):
            self.complete(queue, batch.heads[i], batch.written[i])
        self.show(queue)
        for i in range(self.noted):
            # SAFETY: `note_at` was given places in the table.
            vu_note64(self.words + step[2 * i], step[2 * i + 1])
        vu_note64(self.words, 0)
        self.noted = batch.packets = batch.pieces = 0
        batch.bytes = 0

    # From the guest.

    cdef bint add(self, Chain *chain) noexcept nogil:
        # A packet to the batch; False: it is for Python.
        cdef Batch *batch = &self.batch
        cdef Header header
        cdef uint64_t waiting
        cdef int slot, count
        if chain.readable < sizeof(Header):
            return False
        copy_out(chain, 0, &header, sizeof(Header))
        if header.kind != STREAM:
            return False
        if header.op == OP_CREDIT_UPDATE:
            header.length = 0
        elif header.op != OP_RW or header.length == 0:
            return False
        if header.src_cid != self.cid or header.dst_cid != HOST_CID:
            return False
        if chain.readable - sizeof(Header) < header.length:
            return False
        slot = self.find(header.src_port, header.dst_port)
        if slot < 0 or (header.length and self.get(slot, GUEST_SHUT) & SHUT_SEND):
            return False
        if batch.packets and (batch.slot != slot or batch.packets == MOST_PACKETS):
            self.send()
        waiting = self.get(slot, GOT) + batch.bytes - self.get(slot, TOLD)
        if waiting + header.length > self.buffer:
            # More than there was credit for, whatever the send of the batch gives.
            self.beyond_credit = True
            return False
        count = self.cut(chain, header.length)
        if count < 0 and batch.packets:
            self.send()
            count = self.cut(chain, header.length)
        if count < 0:
            return False
        batch.slot = slot
        batch.heads[batch.packets] = chain.head
        batch.written[batch.packets] = 0
        batch.packets += 1
        batch.pieces += count
        batch.bytes += header.length
        batch.peer_alloc = header.buf_alloc
        batch.peer_fwd = header.fwd_cnt
        if batch.bytes >= MOST_BYTES:
            self.send()
        return True

    cdef int find(self, uint32_t guest_port, uint32_t host_port) noexcept nogil:
        # The slot of an open stream, -1: there is none. As a rule it is that of the last packet.
        cdef int i, slot
        for i in range(self.slots):
            slot = self.batch.slot + i
            slot -= self.slots if slot >= self.slots else 0
            if (
                self.get(slot, STATE) == STATE_OPEN
                and self.get(slot, GUEST_PORT) == guest_port
                and self.get(slot, HOST_PORT) == host_port
            ):
                return slot if self.get(slot, KIND) == STREAM else -1
        return -1

    cdef int cut(self, Chain *chain, uint64_t length) noexcept nogil:
        # The data of a packet behind that of the batch: how many pieces; -1: there is no room.
        cdef Batch *batch = &self.batch
        cdef iovec *part = batch.part + batch.pieces
        cdef int count = cut_pieces(
            chain, False, sizeof(Header), length, part, MOST_PIECES - batch.pieces
        )
        cdef uint64_t total = 0
        cdef int i
        for i in range(count):
            total += part[i].iov_len
        return count if total == length else -1

    cdef void send(self) noexcept nogil:
        # The batch to its program, and what that does not take now to the area.
        cdef Batch *batch = &self.batch
        cdef int slot = batch.slot
        cdef uint64_t begin, end, got, gone
        cdef bint straight
        if not batch.packets:
            return
        begin = self.get(slot, OUT_BEGIN)
        end = self.get(slot, OUT_END)
        got = self.get(slot, GOT) + batch.bytes
        gone = min(self.get(slot, SKIP), batch.bytes)
        straight = begin == end and self.files[slot] >= 0 and gone < batch.bytes
        straight = straight and not self.get(slot, DEAF)
        if gone:
            self.note(slot, SKIP, self.get(slot, SKIP) - gone)
        if straight:
            gone += self.send_straight(gone)
            self.note_at(self.head_at[MOVING], 0)
        self.note(slot, GOT, got)
        self.note(slot, PEER_ALLOC, batch.peer_alloc)
        self.note(slot, PEER_FWD, batch.peer_fwd)
        if self.get(slot, DEAF):
            self.note(slot, PASSED, got)
        else:
            self.put(end, gone)
            self.note(slot, OUT_END, end + batch.bytes)
            if gone:
                # Nothing was before them in the area, nor was there with those that are skipped.
                begin += gone
                self.note(slot, OUT_BEGIN, begin)
                if begin > self.get(slot, PREAMBLE):
                    self.note(
                        slot, PASSED, max(self.get(slot, PASSED), begin - self.get(slot, PREAMBLE))
                    )
        self.finish(TX)
        self.follow_up(slot)

    cdef void follow_up(self, int slot) noexcept nogil:
        # What a packet of the guest's leads to: more for it, or its credit. Whatever is left to do
        # is Python's, which also looks whether there is room for the program's bytes again.
        cdef uint64_t begin = self.get(slot, IN_BEGIN)
        self.fill(slot, MOST_PACKETS)
        if (
            self.get(slot, OUT_BEGIN) != self.get(slot, OUT_END)
            or self.get(slot, IN_END) != begin
            or self.get(slot, OWES)
            or self.credit_is_due(slot)
        ):
            self.fed |= <uint64_t>1 << slot

    cdef uint64_t send_straight(self, uint64_t skip) noexcept nogil:
        # The bytes of the batch behind the first `skip`; how many went. As `Transfer.send`.
        cdef Batch *batch = &self.batch
        cdef uint64_t *message = self.words + self.head_at[MESSAGE]
        cdef iovec *part = batch.part
        cdef int count = batch.pieces
        cdef iovec first
        # SAFETY: skip < bytes, which the pieces add up to.
        while skip >= part.iov_len:
            skip -= part.iov_len
            part += 1
            count -= 1
        first = part[0]
        part.iov_base = <uint8_t *>first.iov_base + skip
        part.iov_len = first.iov_len - skip
        # SAFETY: struct mmsghdr: pieces, their number, flags, and behind them the length.
        vu_note64(message + 2, <uint64_t>part)
        vu_note64(message + 3, count)
        vu_note64(message + 6, 0)
        vu_note64(message + 7, 0)
        vu_note64(self.words + self.head_at[SLOT], batch.slot)
        vu_note64(self.words + self.head_at[BASE], 0)
        vu_note64(self.words + self.head_at[END], 0)
        vu_note64(self.words + self.head_at[MOVING], DIRECT)
        # What went wrong is found again by whoever sends what is in the area.
        sendmmsg(self.files[batch.slot], <mmsghdr *>message, 1, MSG_DONTWAIT | MSG_NOSIGNAL)
        part[0] = first
        return (<uint32_t *>(message + 7))[0]

    cdef void put(self, uint64_t position, uint64_t skip) noexcept nogil:
        # The bytes of the batch behind the first `skip` into the area, whose `position` they begin
        # at.
        cdef Batch *batch = &self.batch
        cdef Area *area = &self.to_host[batch.slot]
        cdef uint64_t at, here, left
        cdef uint8_t *source
        cdef int i
        for i in range(batch.pieces):
            source = <uint8_t *>batch.part[i].iov_base
            left = batch.part[i].iov_len
            here = min(left, skip)
            skip -= here
            position += here
            source += here
            left -= here
            while left:
                at = position % area.size
                here = min(left, area.size - at)
                # SAFETY: at + here <= size.
                memcpy(area.bytes + at, source, here)
                position += here
                source += here
                left -= here

    # For the guest.

    cdef int fill(self, int slot, int most) noexcept nogil:
        cdef int count = 0, some = 1
        cdef uint64_t owes = self.get(slot, OWES)
        if self.get(slot, STATE) != STATE_OPEN or self.get(slot, KIND) != STREAM:
            return 0
        if owes & ~<uint64_t>OWES_CREDIT:
            return 0
        if not self.get(slot, GUEST_SHUT) & SHUT_RECEIVE:
            while count < most and some:
                some = self.fill_some(slot, min(most - count, <int>MOST_PACKETS))
                count += some
        if not count and (owes or self.credit_is_due(slot)):
            count = self.tell_credit(slot, owes)
        return count

    cdef int fill_some(self, int slot, int most) noexcept nogil:
        # Data in so many packets, which are one step.
        cdef Batch *batch = &self.batch
        cdef Area *area = &self.to_guest[slot]
        cdef Chain chain
        cdef uint64_t position = self.get(slot, IN_BEGIN), left = self.get(slot, IN_END) - position
        cdef uint64_t given = self.get(slot, GIVEN), count, at, first
        cdef int64_t credit = <int64_t>(
            self.get(slot, PEER_ALLOC) - (<uint32_t>(given - self.get(slot, PEER_FWD)))
        )
        cdef int looks
        for looks in range(most):
            if not left or credit <= 0 or self.pull(RX, &chain) <= 0:
                break
            if chain.writable <= sizeof(Header):
                # No packet has room there.
                self.complete(RX, chain.head, 0)
                continue
            count = min(min(left, <uint64_t>credit), chain.writable - sizeof(Header))
            count = min(count, <uint64_t>PACKET_MOST)
            self.begin_packet(slot, &chain, OP_RW, <uint32_t>count)
            at = position % area.size
            first = min(count, area.size - at)
            # SAFETY: at + first <= size, and the rest is no more than what is before `at`.
            copy_in(&chain, sizeof(Header), area.bytes + at, first)
            copy_in(&chain, sizeof(Header) + first, area.bytes, count - first)
            position += count
            left -= count
            given += count
            credit -= count
        if not batch.packets:
            return 0
        looks = batch.packets
        self.note(slot, IN_BEGIN, position)
        self.note(slot, GIVEN, given)
        self.note(slot, TOLD, self.get(slot, PASSED))
        self.finish(RX)
        return looks

    cdef bint credit_is_due(self, int slot) noexcept nogil:
        # As `Connection._credit_is_due`.
        cdef uint64_t passed = self.get(slot, PASSED), told = self.get(slot, TOLD)
        cdef uint64_t little = self.buffer // 4, known = self.get(slot, GOT) - told
        if passed == told:
            return False
        return passed - told >= little or known > self.buffer - little

    cdef int tell_credit(self, int slot, uint64_t owes) noexcept nogil:
        cdef Chain chain
        if self.pull(RX, &chain) <= 0:
            return 0
        if chain.writable < sizeof(Header):
            self.complete(RX, chain.head, 0)
            return 0
        self.begin_packet(slot, &chain, OP_CREDIT_UPDATE, 0)
        self.note(slot, TOLD, self.get(slot, PASSED))
        self.note(slot, OWES, owes & ~<uint64_t>OWES_CREDIT)
        self.finish(RX)
        return 1

    cdef void begin_packet(self, int slot, Chain *chain, int op, uint32_t length) noexcept nogil:
        # Its header, and its place in the batch.
        cdef Batch *batch = &self.batch
        cdef Header header
        header.src_cid = HOST_CID
        header.dst_cid = self.cid
        header.src_port = <uint32_t>self.get(slot, HOST_PORT)
        header.dst_port = <uint32_t>self.get(slot, GUEST_PORT)
        header.length = length
        header.kind = STREAM
        header.op = <uint16_t>op
        header.flags = 0
        header.buf_alloc = <uint32_t>self.buffer
        header.fwd_cnt = <uint32_t>self.get(slot, PASSED)
        copy_in(chain, 0, &header, sizeof(Header))
        batch.heads[batch.packets] = chain.head
        batch.written[batch.packets] = <uint32_t>sizeof(Header) + length
        batch.packets += 1
