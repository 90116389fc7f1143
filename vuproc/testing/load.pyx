# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Many requests on one queue from native code, so that the device is what is measured.

It runs without the GIL: one generator a thread drives a device's queues at once. It spends some
tens of nanoseconds a request itself, next to nothing beside what a device spends.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport read, write

from vuproc.testing.content cimport (
    fill_bytes, fill_complement, fill_words, holds_bytes, holds_words, mix, word_at
)
from vuproc.testing.ring cimport DESC_WRITE, DriverRing, Segment
from vuproc.shm.atomics cimport vu_load_relaxed64, vu_pause, vu_store_relaxed64
from vuproc.shm.clock cimport clock_ns

from vuproc.testing.errors import BackendFault, LoadStalled
from vuproc.testing.job import Kind, Stats

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    short POLLIN

cdef extern from * nogil:
    int __builtin_clzll(unsigned long long value)


cdef enum:
    BUCKETS = 496                 # eight to each power of two of a 64-bit number of nanoseconds
    WAIT_MS = 50                  # longest sleep between two looks at the stop word and at signals
    SPINS = 4096                  # looks at the ring between two looks at the clock
    HEADER_AT = 48                # in a slot's service area, behind the table's three entries
    STATUS_AT = 64
    SLOT_SERVICE = 128
    BLK_IN = 0
    BLK_OUT = 1
    STATUS_UNSET = 0xff


cdef struct Slot:
    uint64_t started_ns
    uint64_t place                # the sector (BLOCK) or the request's number (PLAIN)
    uint8_t writes


cdef inline int bucket_of(uint64_t ns) noexcept nogil:
    cdef int power
    if ns < 8:
        return <int>ns
    power = 63 - __builtin_clzll(ns)
    return (power - 2) * 8 + <int>((ns >> (power - 3)) & 7)


cdef class LoadGenerator:
    """One job on one ring.

    memory: the buffer that the ring lies in. arena: byte offset in it of `job.arena_size` free
    bytes whose guest address is `address`, aligned to 64. kick, call: descriptors, borrowed; kick
    -1 = the device polls, call -1 = we do. `run` may be called once; `stop` and `completed` are for
    other threads.
    """

    cdef DriverRing ring
    cdef object _memory
    cdef object job
    cdef bytes _expected, _unexpected
    cdef const uint8_t *expected            # what every request's writable part begins with
    cdef const uint8_t *unexpected          # its complement, for the time before
    cdef char *arena
    cdef uint64_t address
    cdef int kick, call
    cdef Slot *slots
    cdef uint16_t *free_slots
    cdef unsigned int free_count
    cdef uint16_t *slot_of_name
    cdef uint64_t[BUCKETS] histogram
    cdef uint64_t completed_word, stop_word
    cdef uint64_t submitted, failed, corrupt, kicks, calls, bytes_read, bytes_written
    cdef uint64_t count, depth, block, blocks, first_sector, random, pattern, cursor, slot_data
    cdef uint64_t out_size, in_size, header_size, expected_size, echo_size, first_byte
    cdef int64_t place_at                   # in the readable part; -1: there is no place
    cdef unsigned int read_percent
    cdef bint block_kind, sequential, patterned, indirect, polling, started
    cdef uint64_t stall_ns, progress_ns      # progress: time of the last completion
    cdef uint32_t bad_name

    def __cinit__(self, DriverRing ring not None, object memory, *, size_t arena, uint64_t address,
                  int kick, int call, object job):
        cdef Py_buffer view
        cdef unsigned int i
        cdef unsigned int chain
        self.ring = ring
        self.job = job
        self.block_kind = job.kind is Kind.BLOCK
        self.count = job.count
        self.depth = job.depth
        self.indirect = job.indirect
        chain = 3 if self.block_kind else (job.out_size > 0) + (job.in_size > 0)
        if self.depth * (1 if self.indirect else chain) > ring.free:
            raise ValueError(
                f"depth {job.depth} does not fit the {ring.free} free descriptors of the ring"
            )
        self._memory = memoryview(memory)
        PyObject_GetBuffer(self._memory, &view, PyBUF_WRITABLE)
        length = <size_t>view.len
        self.arena = <char *>view.buf
        PyBuffer_Release(&view)
        if arena % 64 or arena > length or job.arena_size > length - arena:
            raise ValueError(f"arena at {arena:#x} does not fit its memory of {length} bytes")
        # SAFETY: the arena was just checked against the buffer, which self._memory keeps exported.
        self.arena += arena
        self.address = address
        self.kick = kick
        self.call = call
        self.slot_data = job.slot_data
        self.block = job.block_size
        self.place_at = -1 if job.place_at is None else job.place_at
        self.blocks = 0
        if self.block_kind or self.place_at >= 0:
            self.blocks = job.span // job.block_size
        self.first_sector = job.start // 512
        self.first_byte = job.start
        self.read_percent = job.read_percent
        self.sequential = job.sequential
        self.random = mix(job.seed & 0xffffffffffffffff)
        self.patterned = job.pattern is not None
        self.pattern = mix(job.pattern & 0xffffffffffffffff) if self.patterned else 0
        self.out_size = job.out_size
        self.in_size = job.in_size
        self.header_size = len(job.header)
        self._expected = job.expected
        self._unexpected = bytes([byte ^ 0xff for byte in self._expected])
        self.expected = self._expected
        self.unexpected = self._unexpected
        self.expected_size = len(self._expected)
        # What the template does not hold: it differs from request to request.
        self.echo_size = job.checked - self.expected_size
        self.polling = job.poll
        self.stall_ns = <uint64_t>(job.stall_s * 1e9)
        if not self.polling and call < 0:
            raise ValueError("a sleeping driver needs a call descriptor")
        self.slots = <Slot *>calloc(self.depth, sizeof(Slot))
        self.free_slots = <uint16_t *>calloc(self.depth, sizeof(uint16_t))
        self.slot_of_name = <uint16_t *>calloc(ring.size, sizeof(uint16_t))
        if self.slots == NULL or self.free_slots == NULL or self.slot_of_name == NULL:
            raise MemoryError
        for i in range(<unsigned int>self.depth):
            self.free_slots[i] = <uint16_t>(self.depth - 1 - i)
        self.free_count = <unsigned int>self.depth
        memset(self.histogram, 0, sizeof(self.histogram))
        if not self.block_kind:
            self.write_content(job.readable)

    def __dealloc__(self):
        free(self.slots)
        free(self.free_slots)
        free(self.slot_of_name)

    def run(self) -> Stats:
        """Run the job to its end or to `stop`, then wait for what is in flight.

        Raises LoadStalled, or BackendFault if the device returned what was not in flight;
        the ring must be set up anew after either.
        """
        cdef uint64_t begin, end
        cdef int result
        if self.started:
            raise RuntimeError("a load generator runs once")
        self.started = True
        begin = self.progress_ns = clock_ns()
        while True:
            with nogil:
                result = self.turn()
            if result != 0:
                break
            PyErr_CheckSignals()
        end = clock_ns()
        if result == -1:
            raise BackendFault(self.ring.fault(self.bad_name))
        if result == -2:
            raise LoadStalled(
                self.completed_word, self.submitted - self.completed_word, self.job.stall_s
            )
        return Stats(
            completed=self.completed_word, failed=self.failed, corrupt=self.corrupt,
            seconds=(end - begin) / 1e9, kicks=self.kicks, calls=self.calls,
            bytes_read=self.bytes_read, bytes_written=self.bytes_written,
            latency=tuple([self.histogram[i] for i in range(BUCKETS)]),
        )

    def stop(self) -> None:
        """Submit nothing more; `run` returns when what is in flight is done. From any thread."""
        vu_store_relaxed64(&self.stop_word, 1)

    @property
    def completed(self) -> int:
        """Requests done so far. From any thread."""
        return vu_load_relaxed64(&self.completed_word)

    cdef int write_content(self, bytes content) except -1:
        """Write what is the same in all requests into every slot's readable part."""
        cdef const uint8_t *source = content
        cdef size_t size = len(content)
        cdef uint64_t i
        if size > self.out_size:
            raise ValueError(f"{size} bytes of content for {self.out_size} readable bytes")
        for i in range(self.depth):
            # SAFETY: data area i of the checked arena begins with out_size readable bytes.
            memcpy(self.arena + i * self.slot_data, source, size)
        return 0

    cdef int turn(self) noexcept nogil:
        """Go on until the job's end (1), a look at signals (0), a bad name (-1) or a stall (-2)."""
        cdef uint64_t now = clock_ns()
        cdef uint64_t turn_end = now + <uint64_t>WAIT_MS * 1000000
        cdef uint32_t name = 0, length = 0
        cdef int got
        cdef bint any, stopping
        cdef uint64_t one = 1
        cdef unsigned int spins = 0
        while True:
            stopping = vu_load_relaxed64(&self.stop_word) != 0
            if self.submitted == self.completed_word and (stopping or self.submitted == self.count):
                return 1
            any = False
            while self.free_count and self.submitted < self.count and not stopping:
                self.free_count -= 1
                self.submit(self.free_slots[self.free_count], now)
                any = True
            if any and self.ring.publish_entries() and self.kick >= 0:
                if write(self.kick, &one, 8) == 8:
                    self.kicks += 1
            any = False
            while True:
                got = self.ring.reap_one(&name, &length)
                if got == 0:
                    break
                if got < 0:
                    self.bad_name = name
                    return -1
                if not any:
                    now = clock_ns()
                    any = True
                self.finish(self.slot_of_name[name], length, now)
            if any:
                self.progress_ns = now
                spins = 0
                if now > turn_end:
                    return 0
                continue
            if self.polling:
                spins += 1
                vu_pause()
                if spins < SPINS:
                    continue
                spins = 0
            elif self.sleep() < 0:
                return -2
            now = clock_ns()
            if now - self.progress_ns > self.stall_ns:
                return -2
            if now > turn_end:
                return 0

    cdef int sleep(self) noexcept nogil:
        """Ask for a call and wait for it up to WAIT_MS; -1 if the call descriptor fails."""
        cdef pollfd wait
        cdef char[256] bell
        cdef int ready
        if self.ring.arm_calls():
            return 0
        wait.fd = self.call
        wait.events = POLLIN
        wait.revents = 0
        ready = poll(&wait, 1, WAIT_MS)
        if ready < 0:
            return 0 if errno == EINTR else -1
        if ready and wait.revents & POLLIN:
            # An eventfd gives 8 bytes, a pipe or socket whatever was written.
            if read(self.call, bell, sizeof(bell)) <= 0:
                return -1
            self.calls += 1
            self.ring.disarm_calls()
        elif ready:
            return -1
        return 0

    cdef void submit(self, uint16_t index, uint64_t now) noexcept nogil:
        """Fill slot `index` with the job's next request and offer its chain."""
        cdef Slot *slot = &self.slots[index]
        cdef uint64_t data = index * self.slot_data
        cdef uint64_t service = self.depth * self.slot_data + <uint64_t>index * SLOT_SERVICE
        cdef uint64_t place
        cdef Segment[3] chain
        cdef unsigned int used = 0
        cdef uint32_t *header
        cdef uint64_t *words
        cdef int name
        slot.started_ns = now
        if self.block_kind:
            place = self.next_block()
            slot.writes = (self.random >> 32) % 100 >= self.read_percent
            slot.place = self.first_sector + place * (self.block // 512)
            # SAFETY: header and status lie in the slot's own service area of the checked arena.
            header = <uint32_t *>(self.arena + service + HEADER_AT)
            header[0] = BLK_OUT if slot.writes else BLK_IN
            header[1] = 0
            memcpy(&header[2], &slot.place, 8)
            self.arena[service + STATUS_AT] = <char>STATUS_UNSET
            if self.patterned:
                # SAFETY: a data area holds block_size bytes, whole sectors, at a multiple of 64.
                words = <uint64_t *>(self.arena + data)
                if slot.writes:
                    fill_words(words, self.block // 8, self.pattern, slot.place)
                else:
                    # A read that moves nothing must not find what the last one left here.
                    words[0] = ~word_at(self.pattern, slot.place, 0)
            chain[0].addr = self.address + service + HEADER_AT
            chain[0].len = 16
            chain[0].flags = 0
            chain[1].addr = self.address + data
            chain[1].len = <uint32_t>self.block
            chain[1].flags = 0 if slot.writes else DESC_WRITE
            chain[2].addr = self.address + service + STATUS_AT
            chain[2].len = 1
            chain[2].flags = DESC_WRITE
            used = 3
        else:
            slot.place = self.submitted
            self.fill_plain(data, slot.place)
            if self.place_at >= 0:
                place = self.first_byte + self.next_block() * self.block
                # SAFETY: Job has checked that these bytes are in the header, in the readable part.
                memcpy(self.arena + data + self.place_at, &place, sizeof(place))
            if self.out_size:
                chain[used].addr = self.address + data
                chain[used].len = <uint32_t>self.out_size
                chain[used].flags = 0
                used += 1
            if self.in_size:
                chain[used].addr = self.address + data + self.out_size
                chain[used].len = <uint32_t>self.in_size
                chain[used].flags = DESC_WRITE
                used += 1
        # The depth fits the ring's free descriptors, so that none of these can fail.
        if self.indirect:
            # SAFETY: at most 3 entries in the 48 bytes at the start of the slot's service area.
            name = self.ring.put_indirect(
                chain, used, self.arena + service, self.address + service
            )
        else:
            name = self.ring.put(chain, used)
        self.slot_of_name[name] = index
        self.submitted += 1

    cdef uint64_t next_block(self) noexcept nogil:
        """Where the next request lies, in whole blocks; `random` goes on."""
        cdef uint64_t place
        self.random = mix(self.random)
        if not self.sequential:
            return mix(self.random) % self.blocks
        place = self.cursor
        self.cursor = place + 1 if place + 1 < self.blocks else 0
        return place

    cdef void fill_plain(self, uint64_t data, uint64_t number) noexcept nogil:
        """Write what is request `number`'s own into a data area: its pattern, and the complement of
        what the device is expected to write, so that nothing it leaves out is taken for right.
        """
        # SAFETY: the data area holds out_size readable and then in_size writable bytes; a header
        # is no longer than the first, and Job.checked, the sum below, no longer than the second.
        cdef uint8_t *readable = <uint8_t *>self.arena + data
        cdef uint8_t *writable = readable + self.out_size
        if self.patterned:
            fill_bytes(
                readable + self.header_size, self.out_size - self.header_size, self.pattern, number
            )
        memcpy(writable, self.unexpected, self.expected_size)
        fill_complement(writable + self.expected_size, self.echo_size, self.pattern, number)

    cdef bint plain_is_right(self, uint64_t data, uint32_t length, uint64_t number) noexcept nogil:
        """Whether the device wrote what is expected of request `number`, and said that it did."""
        # SAFETY: as in fill_plain().
        cdef const uint8_t *writable = <const uint8_t *>self.arena + data + self.out_size
        if length < self.expected_size + self.echo_size:
            return False
        if memcmp(writable, self.expected, self.expected_size) != 0:
            return False
        return holds_bytes(writable + self.expected_size, self.echo_size, self.pattern, number)

    cdef void finish(self, uint16_t index, uint32_t length, uint64_t now) noexcept nogil:
        """Count the completion of slot `index`, of used length `length`, and free it."""
        cdef Slot *slot = &self.slots[index]
        cdef uint64_t service = self.depth * self.slot_data + <uint64_t>index * SLOT_SERVICE
        cdef uint64_t data = index * self.slot_data
        cdef const uint64_t *words
        if self.block_kind:
            if self.arena[service + STATUS_AT] != 0:
                self.failed += 1
            elif slot.writes:
                self.bytes_written += self.block
            else:
                self.bytes_read += self.block
                # SAFETY: as in submit().
                words = <uint64_t *>(self.arena + data)
                if self.patterned and not holds_words(
                    words, self.block // 8, self.pattern, slot.place
                ):
                    self.corrupt += 1
        else:
            if not self.plain_is_right(data, length, slot.place):
                self.corrupt += 1
            self.bytes_written += self.out_size
            self.bytes_read += self.in_size
        self.histogram[bucket_of(now - slot.started_ns)] += 1
        vu_store_relaxed64(&self.completed_word, self.completed_word + 1)
        self.free_slots[self.free_count] = index
        self.free_count += 1
