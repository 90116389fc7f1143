"""Where one queue's writes are marked while its front-end migrates."""

from __future__ import annotations

from vuproc.fd import Fd
from vuproc.shm.dirty import DirtyLog
from vuproc.workers.rings import AnyRing


class QueueLog:
    """What is known of a queue's logging, whether its ring runs or not.

    `log` is where pages are marked and `call` is signalled after it; both are the worker's, and
    for all of its queues. `used_ring` is the guest-physical address at which writes to this queue's
    used ring are marked; None: they are not.
    """

    def __init__(self) -> None:
        self.log: DirtyLog | None = None
        self.call: Fd | None = None
        self.used_ring: int | None = None

    def apply(self, ring: AnyRing, used_ring: int | None) -> None:
        """Have the ring mark from now on as this says, and writes to the used ring there. Raises
        RingError as `Ring.log_writes`.
        """
        ring.set_log_call(-1 if self.call is None else self.call.fileno())
        ring.log_writes(self.log, used_ring)
