from vuproc.shm.memory import GuestMemory

def open_userfault() -> int:
    """A userfaultfd of this process's address space, non-blocking, after the UFFDIO_API handshake.

    The number is the caller's. Raises OSError if the kernel gives none, or none for shared memory.
    """

def register(fd: int, memory: GuestMemory) -> None:
    """From now on a touch of a page that is not in its file waits for whoever holds `fd`.

    Nothing may have touched `memory` before. Raises OSError naming the region that cannot be had.
    """

def unregister(fd: int, memory: GuestMemory) -> None:
    """The opposite: whoever waits goes on, and missing pages are zeros, as of any file."""

def wake(fd: int, address: int, length: int) -> None:
    """Have those go on that wait for a page of this range. Raises OSError."""
