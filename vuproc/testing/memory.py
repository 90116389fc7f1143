"""Guest RAM for tests: regions in memfds, as a VMM makes them, and blocks allocated in them."""

from __future__ import annotations

import os
import threading
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vuproc.fd import Fd
from vuproc.shm.memory import Mapping
from vuproc.testing.errors import OutOfMemory

USER_OFFSET = 0x7F00_0000_0000
"""Default distance of a region's user address from its guest address: the two are never equal,
so that a back-end which takes one for the other is found out."""


@dataclass(slots=True, eq=False)
class Allocation:
    """An allocated range of one region; `view` is its memory, writable."""

    region: RamRegion
    offset: int
    size: int
    view: memoryview = field(repr=False)
    iova: int | None = None
    """Its I/O virtual address, while it has one."""

    @property
    def guest_addr(self) -> int:
        """Guest-physical address, for descriptors."""
        return self.region.guest_addr + self.offset

    @property
    def user_addr(self) -> int:
        """Front-end user address, for SET_VRING_ADDR."""
        return self.region.user_addr + self.offset

    def free(self) -> None:
        """Give the range back; the block must not be used again."""
        self.view.release()
        self.region.give_back(self.offset, self.size)


class Room:
    """The free ranges of a region that begins at `guest_addr`.

    Threads may share it, since a guest's queues are driven side by side.
    """

    def __init__(self, guest_addr: int, size: int) -> None:
        self._begin = guest_addr
        self._free = [(0, size)]  # (offset, size), by offset, never adjacent
        self._lock = threading.Lock()

    def take(self, size: int, align: int) -> int | None:
        """The offset of a range whose guest address is a multiple of `align`; None if full."""
        with self._lock:
            for index, (start, length) in enumerate(self._free):
                offset = start + -(self._begin + start) % align
                if offset + size <= start + length:
                    rest = [
                        (start, offset - start),
                        (offset + size, start + length - offset - size),
                    ]
                    self._free[index : index + 1] = [part for part in rest if part[1]]
                    return offset
        return None

    def give_back(self, offset: int, size: int) -> None:
        """Make a range free again, joined with its free neighbours."""
        with self._lock:
            insort(self._free, (offset, size))
            joined: list[tuple[int, int]] = []
            for start, length in self._free:
                if joined and joined[-1][0] + joined[-1][1] == start:
                    joined[-1] = (joined[-1][0], joined[-1][1] + length)
                else:
                    joined.append((start, length))
            self._free = joined


class RamRegion:
    """One region of guest memory: `size` bytes at `mmap_offset` of a memfd of its own.

    fd: the memfd. buffer: the region's bytes (not the file's), writable and shared with whoever
    maps the fd. All addresses are in bytes.
    """

    def __init__(
        self,
        guest_addr: int,
        size: int,
        *,
        user_addr: int | None = None,
        mmap_offset: int = 0,
    ) -> None:
        self.guest_addr = guest_addr
        self.size = size
        self.user_addr = guest_addr + USER_OFFSET if user_addr is None else user_addr
        self.mmap_offset = mmap_offset
        self.fd = Fd(os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            os.ftruncate(self.fd.fileno(), mmap_offset + size)
            # Not mmap.mmap(), which keeps a descriptor of its own for as long as a view is left.
            self.buffer = memoryview(Mapping(self.fd.fileno(), size, mmap_offset))
        except BaseException:
            self.fd.close()
            raise
        self._room = Room(guest_addr, size)

    @property
    def fields(self) -> dict[str, Any]:
        """The region as the messages about memory carry it."""
        return {
            "guest_addr": self.guest_addr,
            "size": self.size,
            "user_addr": self.user_addr,
            "mmap_offset": self.mmap_offset,
        }

    def allocate(self, size: int, align: int = 16) -> Allocation | None:
        """A zeroed block of `size` bytes, its guest address a multiple of `align`; None if full."""
        offset = self._room.take(size, align)
        if offset is None:
            return None
        view = self.buffer[offset : offset + size]
        view[:] = bytes(size)
        return Allocation(self, offset, size, view)

    def give_back(self, offset: int, size: int) -> None:
        """Make a range free again."""
        self._room.give_back(offset, size)

    def close(self) -> None:
        """Close the memfd. The memory is unmapped with the last view of it, such as a ring's."""
        self.fd.close()

    def __enter__(self) -> RamRegion:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class Ram:
    """The guest's memory: the regions a front-end tells a back-end of."""

    def __init__(self, regions: Sequence[RamRegion] | int = 16 << 20) -> None:
        """Own `regions`; a number makes one region of so many bytes at guest address 0x100000."""
        self.regions = [RamRegion(1 << 20, regions)] if isinstance(regions, int) else [*regions]

    def allocate(self, size: int, align: int = 16) -> Allocation:
        """A zeroed block from the first region with room. Raises OutOfMemory."""
        for region in self.regions:
            block = region.allocate(size, align)
            if block is not None:
                return block
        raise OutOfMemory(size)

    def close(self) -> None:
        """Close every region."""
        for region in self.regions:
            region.close()
