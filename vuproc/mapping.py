"""Devices with shared memory regions: windows of the guest's address space in which the front-end
shows what the device says (virtio 1.3 section 2.10; SHMEM_MAP and SHMEM_UNMAP of vhost-user).
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

from vuproc.device import Device
from vuproc.fd import Fd, HasFileno
from vuproc.outcome import Outcome

PAGE = mmap.PAGESIZE
REGIONS_MAX = 256
"""Regions of a device: their ids have eight bits."""
SIZE_MAX = 1 << 63
ASKS_MAX = 64
"""Mappings that a device asks for, or has taken away, at a time."""


class ShmemMapping(msgspec.Struct, frozen=True):
    """A part of a shared memory region in which there is a file; all in bytes."""

    region: int
    offset: int
    length: int
    writable: bool = False

    @property
    def end(self) -> int:
        """Where it ends in its region."""
        return self.offset + self.length


class MapShmem(msgspec.Struct, frozen=True, tag=True):
    """Have the front-end map a file there. The descriptor is a copy, and whoever receives it owns
    it.
    """

    serial: int
    mapping: ShmemMapping
    file: Fd
    file_offset: int


class UnmapShmem(msgspec.Struct, frozen=True, tag=True):
    """Have it take that away."""

    serial: int
    mapping: ShmemMapping


ShmemAsk = MapShmem | UnmapShmem
"""What a device asks of the master, whose answer has the serial."""


class MappingDevice(Device):
    """A device with shared memory regions. The worker of queue 0 says what is in them.

    What it asks for is carried out in that order, while a ring runs, and never waited for: the
    front-end may be waiting for this worker. Before a ring stops, and whenever else nothing may be
    in flight, all that is not answered fails, so that the requests which wait for it can end.

    A mapping stays whatever becomes of the worker, until `shmem_unmap`, a reset of the device, or
    the end of the front-end.
    """

    shared_memory: ClassVar[Mapping[int, int]] = {}
    """The size in bytes of each region, by its id from 0 to 255: multiples of the page size."""

    def shmem_map(
        self,
        region: int,
        offset: int,
        file: HasFileno,
        file_offset: int,
        length: int,
        *,
        writable: bool = False,
    ) -> Outcome[None]:
        """Have `length` bytes of a file, from `file_offset` on, appear at `offset` of a region. The
        file stays the device's own to close.

        The outcome is ShmemRefused if that was not done: there is something already, or the
        front-end cannot. Raises ValueError for a place that is not in the region or not in the
        file, or not of whole pages.
        """
        mapping = ShmemMapping(region, offset, length, writable)
        if problem := place_problem(self.shared_memory, mapping):
            raise ValueError(problem)
        if file_offset < 0 or file_offset % PAGE:
            raise ValueError(f"offset {file_offset:#x} of the file is not one of a page")
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and file_offset + length > status.st_size:
            raise ValueError(
                f"bytes {file_offset:#x}+{length:#x} of a file with {status.st_size:#x}"
            )
        return self._running_in().map_shmem(mapping, file, file_offset)

    def shmem_unmap(self, region: int, offset: int, length: int) -> Outcome[None]:
        """Take away what was mapped there: one mapping as it was made, and all of it. The outcome
        is ShmemRefused if that was not done. Raises ValueError as `shmem_map`.
        """
        mapping = ShmemMapping(region, offset, length)
        if problem := place_problem(self.shared_memory, mapping):
            raise ValueError(problem)
        return self._running_in().unmap_shmem(mapping)

    def shmem_recovered(self, mappings: Sequence[ShmemMapping]) -> None:
        """This worker follows another, and this is what is mapped: called before any ring runs, and
        not if there is nothing.
        """


def regions_of(device: Device) -> Mapping[int, int]:
    """The shared memory regions of a device, of any kind."""
    return device.shared_memory if isinstance(device, MappingDevice) else {}


def place_problem(regions: Mapping[int, int], mapping: ShmemMapping) -> str:
    """Why there can be no mapping at that place, or ""."""
    size = regions.get(mapping.region)
    if size is None:
        return f"there is no shared memory region {mapping.region}"
    place = f"{mapping.offset:#x}+{mapping.length:#x}"
    if mapping.offset < 0 or mapping.length <= 0 or mapping.end > size:
        return f"{place} is not in shared memory region {mapping.region} of {size:#x} bytes"
    if mapping.offset % PAGE or mapping.length % PAGE:
        return f"{place} in shared memory region {mapping.region} is not of whole pages"
    return ""


def regions_problem(regions: object) -> str:
    """What is wrong with a `shared_memory`, or ""."""
    if not isinstance(regions, Mapping):
        return f"is of type {type(regions).__name__}, not a dict of ids and sizes"
    for region, size in regions.items():
        if type(region) is not int or not 0 <= region < REGIONS_MAX:
            return f"has a region {region!r}: an id is a number from 0 to {REGIONS_MAX - 1}"
        if type(size) is not int or not 0 < size < SIZE_MAX or size % PAGE:
            return f"has {size!r} bytes for region {region}: a size is a multiple of {PAGE}"
    return ""
