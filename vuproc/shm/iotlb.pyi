from typing import final

from vuproc.shm.memory import GuestMemory

ENTRIES_MAX: int
"""Translations that a cache keeps; of more, some are forgotten, and asked for again."""

def keep_at_most(count: int) -> None:
    """Have each cache of this process keep so many, at most ENTRIES_MAX, so that a test need not
    fill a whole one; what it has by then, it keeps. Raises ValueError.
    """

@final
class Iotlb:
    """What is known of an IOMMU's translations: ranges of I/O virtual addresses, the front-end's
    user address of each, and what the device may do there.
    """

    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def update(self, iova: int, size: int, user_addr: int, access: int) -> None:
        """Know of `size` bytes from `iova` on, in place of all that overlaps them; if that is the
        very same range, it may be accessed as before, too. access: 1 to read, 2 to write, 3 both; 0
        only forgets what was there.

        Raises MemoryFault if a range is empty or wraps around.
        """

    def invalidate(self, first: int, last: int) -> int:
        """Forget each translation that has an address in this range; how many there were."""

    def clear(self) -> None:
        """Forget all of them, and what is missing."""

    def place(self, memory: GuestMemory, iova: int, length: int, access: int) -> int | None:
        """The user address of `length` bytes that lie in one piece of one region, as a ring does;
        None if some are not known: `take_misses` has them.

        Raises MemoryFault if they lie in several pieces.
        """

    def gather(
        self, memory: GuestMemory, iova: int, length: int, access: int
    ) -> tuple[memoryview, ...] | None:
        """Views that together are `length` bytes; None if some are not known: `take_misses` has
        them. Raises MemoryFault if the addresses wrap around, or come in too many pieces.
        """

    def take_misses(self) -> list[tuple[int, int]]:
        """What was looked for and is not known, since the last call: (address of a page, access
        that is not known), each once.
        """
