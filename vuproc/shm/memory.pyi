from collections.abc import Iterable, Sequence
from typing import final

from vuproc.shm.xen import OnDemand

class Mapping:
    """One shared mapping of a part of a file; a buffer of `size` bytes.

    Unmapped when the last memoryview of it is gone.
    """

    size: int
    def __init__(self, fd: int, size: int, offset: int) -> None:
        """Map `size` bytes of `fd` (borrowed) from `offset`, which need not be aligned.

        Raises MemoryFault if the range wraps or passes the file's end, or if the mapping fails.
        """

    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class GuestMemory:
    """An immutable table of guest memory: guest addresses and user addresses to mappings."""

    def __init__(self) -> None:
        """Make an empty table."""

    @staticmethod
    def from_regions(regions: Iterable[tuple[int, int, int, int, int]]) -> GuestMemory:
        """Map a whole table: tuples of (guest_addr, size, user_addr, mmap_offset, fd).

        Raises MemoryFault as `with_region` does; then nothing stays mapped.
        """

    def with_region(
        self, guest_addr: int, size: int, user_addr: int, mmap_offset: int, fd: int
    ) -> GuestMemory:
        """Return a table with one region more, sharing the mappings of this one; `fd` is borrowed.

        Raises MemoryFault on size 0, wrap-around, overlap in guest or user addresses,
        a range past the file's end, a file that cannot be mapped read-write, or too many regions.
        """

    def joined(self, pages: Sequence[int]) -> tuple[GuestMemory, int]:
        """Return a table in which the whole pages at these user addresses follow one another, too,
        and the user address at which they do. They are the same pages: a mapping more.

        Raises MemoryFault if one is not a whole page of one region (of the host's, which a huge
        page is not), or if it cannot be mapped.
        """

    def with_joined_of(self, other: GuestMemory) -> GuestMemory:
        """Return a table that has what another has joined, too, at the same addresses."""

    def without_region(self, guest_addr: int, size: int, user_addr: int) -> GuestMemory:
        """Return a table without the region that has just these values; MemoryFault if none has."""

    @property
    def regions(self) -> tuple[tuple[int, int, int], ...]:
        """(guest_addr, size, user_addr) of each region, by guest address."""

    def with_mapping(self, guest_addr: int, user_addr: int, mapping: Mapping) -> GuestMemory:
        """Return a table with one region more, which is mapped already. Raises MemoryFault as
        `with_region` does.
        """

    def with_on_demand(self, regions: tuple[OnDemand, ...]) -> GuestMemory:
        """Return a table with the same mappings, and with these regions whose pages are mapped when
        a request needs them, in place of any it had. They are in none of its answers.
        """

    @property
    def on_demand(self) -> tuple[OnDemand, ...]:
        """Those regions."""

    @property
    def hosts(self) -> tuple[int, ...]:
        """Where each region is mapped in this process, in the order of `regions`."""

    def __len__(self) -> int: ...
    def view(self, guest_addr: int, length: int) -> memoryview:
        """Return a writable view of a range inside one region; MemoryFault otherwise."""

    def user_view(self, user_addr: int, length: int) -> memoryview:
        """As `view`, by the front-end's user address."""

    def gather(self, guest_addr: int, length: int) -> tuple[memoryview, ...]:
        """Views that together cover a range, over adjacent regions; MemoryFault on a hole."""
