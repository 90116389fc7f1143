class NativeDevice:
    """What serves the requests of one queue without Python. Subclass it in Cython (native.pxd)."""

    completion_fd: int
    """A descriptor that is readable while deferred requests wait to be completed; -1: none."""

    @property
    def failures(self) -> int:
        """Requests that failed for a reason worth a line in the log."""

    @property
    def failure(self) -> int:
        """The errno of the last of them."""
