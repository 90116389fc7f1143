"""The io_uring of one queue: made at each start of its ring, gone with it."""

from __future__ import annotations

import logging

from vuproc.device import Device
from vuproc.errors import RingError, UringUnavailable
from vuproc.shm.counters import QueueCounters
from vuproc.shm.native import NativeDevice
from vuproc.shm.uring import Uring
from vuproc.vhost_user.effects import Inflight
from vuproc.workers import uring_lock
from vuproc.workers.rings import AnyRing

log = logging.getLogger("vuproc.worker")


class RingBusy(RingError):
    """The kernel has not finished with the ring's requests yet: another worker may have to wait
    no more.
    """


class QueueUring:
    """What queue `index` has the kernel do; nothing unless the device wants that."""

    def __init__(self, index: int, device: Device, counters: QueueCounters | None) -> None:
        self.completions = -1
        """Readable while io_uring has completed something; -1: there is no io_uring."""
        self._index = index
        self._device = device
        self._counters = counters
        self._uring: Uring | None = None
        self._native: NativeDevice | None = None

    def open(
        self,
        ring: AnyRing,
        native: NativeDevice | None,
        size: int,
        inflight: Inflight,
        record_bytes: int,
    ) -> None:
        """Have one for a ring of `size` descriptors, if its device wants one and the kernel has one
        to give.

        Before that, whatever a dead worker's has under way in the kernel is waited for: it may
        write to the memory or the blocks of requests that are to be run again. Raises RingError if
        that takes too long.
        """
        extent = inflight.offset, record_bytes
        if ring.recovered:
            try:
                uring_lock.wait(inflight.fd, *extent)
            except uring_lock.StillBusy as error:
                raise RingBusy(self._index, ring.next_avail, str(error)) from error
        files = self._device.uring_files(self._index)
        if not files:
            return
        try:
            held = uring_lock.hold(inflight.fd, *extent)
            try:
                uring = Uring(size, [*files, held])
            finally:
                held.close()
        except (UringUnavailable, OSError) as error:
            log.warning("queue %d: requests block, for there is %s", self._index, error)
            return
        if self._counters is not None:
            uring.count_in(self._counters)
        self._uring, self._native, self.completions = uring, native, uring.fileno()
        if native is not None:
            native.set_uring(self._index, uring)
        else:
            ring.uring = uring

    def blame(self, ring: AnyRing, looks: int) -> int:
        """As `Ring.blame`, for what io_uring has; 0 if there is none."""
        return 0 if self._uring is None else ring.blame(self._uring, looks)

    def submit(self) -> bool:
        """False if io_uring cannot take all that was begun just now: call again soon."""
        uring = self._uring
        if uring is None or not uring.pending:
            return True
        uring.submit_all()
        return not uring.pending

    def close(self) -> None:
        """The ring has stopped: it has waited for the kernel, if it was ever run."""
        if self._uring is not None:
            self._uring.close()
            self._uring = None
        if self._native is not None:
            self._native.set_uring(self._index, None)
            self._native = None
        self.completions = -1
