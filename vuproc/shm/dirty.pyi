from typing import final

@final
class DirtyLog:
    """The dirty log of a live migration (vhost-user, "Migration"): one bit a page of 4096 bytes of
    guest-physical address, shared with the front-end and with other workers.
    """

    def __init__(self, fd: int, size: int, offset: int = 0) -> None:
        """Map `size` bytes of `fd` (borrowed) from `offset` on, as SET_LOG_BASE says.

        Raises MemoryFault if the file does not hold them or if they cannot be mapped read-write.
        """

    @property
    def size(self) -> int:
        """Bytes of the log."""

    @property
    def ignored(self) -> int:
        """Pages that were to be marked and that the log has no bit for."""

    def mark(self, guest_addr: int, length: int) -> None:
        """Set the bits of the pages in which `length` bytes from `guest_addr` lie.

        Call it after the bytes were written, and before the driver is told of them. Pages beyond
        the end of the log are counted in `ignored`, and nothing is written for them.
        """
