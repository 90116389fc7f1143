# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""What split and packed rings share."""

from vuproc.shm.memory cimport GuestMemory
from vuproc.shm.native_serving cimport NativeServing

from vuproc.shm.native_serving import SLICE_NS


cdef class Ring(NativeServing):
    """The device side of one virtqueue, whatever its layout."""

    def rebind(self, GuestMemory memory not None):
        """Go on in a new memory table."""
        self.check_sound()
        if self.stopped:
            return
        if self.flying and not memory.keeps(self.memory):
            raise ValueError(f"queue {self.queue}: {self.flying} requests in flight")
        # Used elements that are waiting belong to requests of the old table; the ring may move.
        self.flush()
        try:
            self.bind(memory)
        except Exception as error:
            self.cause = b"ring not covered by the new memory table"
            raise self.break_ring() from error
        self.memory = memory

    def stop(self, *, bint keep=False):
        """Let go of guest memory without touching it; return `next_avail`, the base."""
        if not self.stopped:
            if self.failure is None and not keep:
                if self.can_unfetch():
                    self.unfetch_all()
                self.kept = self.outstanding
                if not self.kept and not self.batched:
                    self.note_end()
                    if self.call_after_recovery:
                        # There is no successor that would do it.
                        self.signal()
            else:
                self.kept = self.outstanding
            self.stopped = True
            self.call_fd = -1
            self.detach()
        return self.next_avail
