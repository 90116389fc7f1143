"""Shared memory regions as a front-end has them: what the back-end maps is there to be read."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

from vuproc.fd import Fd
from vuproc.spec.vhost_user import MMAP_WRITABLE


class SharedRegions:
    """The regions of a device, by id; `sizes` are their bytes. A front-end's own rules hold: what
    is not wholly in a region, or over another mapping, is refused.
    """

    def __init__(self, sizes: Mapping[int, int] | None = None) -> None:
        self.sizes = dict(sizes or {})
        self._mapped: dict[tuple[int, int], mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self._mapped)

    def map(self, fields: Mapping[str, Any], file: Fd) -> bool:
        """Carry out SHMEM_MAP; False if it is refused. The descriptor stays the caller's."""
        region, offset, length = fields["shmid"], fields["shm_offset"], fields["len"]
        end = offset + length
        if not 0 < length <= end <= self.sizes.get(region, 0):
            return False
        for (other, start), mapping in self._mapped.items():
            if other == region and offset < start + len(mapping) and start < end:
                return False
        access = mmap.PROT_READ
        if fields["flags"] & MMAP_WRITABLE:
            access |= mmap.PROT_WRITE
        try:
            self._mapped[region, offset] = mmap.mmap(
                file.fileno(), length, mmap.MAP_SHARED, access, offset=fields["fd_offset"]
            )
        except (OSError, ValueError):
            return False
        return True

    def unmap(self, fields: Mapping[str, Any]) -> bool:
        """Carry out SHMEM_UNMAP: of one mapping, and the whole of it."""
        key = fields["shmid"], fields["shm_offset"]
        mapping = self._mapped.get(key)
        if mapping is None or len(mapping) != fields["len"]:
            return False
        self._mapped.pop(key).close()
        return True

    def read(self, region: int, offset: int, length: int) -> bytes:
        """Bytes of a region, all of one mapping. Raises ValueError if they are not mapped."""
        mapping, at = self._find(region, offset, length)
        return bytes(mapping[at : at + length])

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Store into a region, as its guest may. Raises ValueError if it is not mapped there, and
        TypeError if it is only for reading.
        """
        mapping, at = self._find(region, offset, len(data))
        mapping[at : at + len(data)] = data

    def clear(self) -> None:
        """Drop every mapping, as at a reset of the device."""
        for mapping in self._mapped.values():
            mapping.close()
        self._mapped.clear()

    def _find(self, region: int, offset: int, length: int) -> tuple[mmap.mmap, int]:
        for (other, start), mapping in self._mapped.items():
            if other == region and start <= offset and offset + length <= start + len(mapping):
                return mapping, offset - start
        raise ValueError(f"bytes {offset:#x}+{length:#x} of region {region} are not mapped")
