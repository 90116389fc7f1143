from vuproc.shm.uring import Uring

class NativeDevice:
    """What serves the requests of one queue without Python. Subclass it in Cython (native.pxd)."""

    completion_fd: int
    """A descriptor that is readable while deferred requests wait to be completed; -1: none."""

    uring: Uring | None
    """The ring's io_uring while it is started, if `Device.uring_files` wants one. The ring closes
    it after `settle`."""

    @property
    def failures(self) -> int:
        """Requests that failed for a reason worth a line in the log."""

    @property
    def failure(self) -> int:
        """The errno of the last of them."""
