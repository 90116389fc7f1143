from collections.abc import Callable

from vuproc.shm.request import Request
from vuproc.shm.uring import Uring

class NativeDevice:
    """What serves the requests of one queue, or of several, without Python. Subclass it in Cython
    (native.pxd).
    """

    completion_fd: int
    """A descriptor that is readable while deferred requests wait to be completed; -1: none."""

    handle: Callable[[Request], object] | None
    """`Device.handle`, for the requests that the native code leaves to it. The worker sets it."""

    def set_uring(self, queue: int, uring: Uring | None) -> None:
        """Give the device the io_uring of that queue's ring, if `Device.uring_files` wants one;
        None takes it away. The ring closes it after `settle`. ValueError if there is no such queue.
        """

    def uring_of(self, queue: int) -> Uring | None:
        """What `set_uring` gave, until the ring stops or breaks."""

    @property
    def failures(self) -> int:
        """Requests that failed for a reason worth a line in the log."""

    @property
    def failure(self) -> int:
        """The errno of the last of them."""
