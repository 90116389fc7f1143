"""What IOTLB messages of vhost-user have in numbers ("IOMMU support")."""

from __future__ import annotations

from enum import IntEnum, IntFlag

IOTLB_PAGE = 4096
"""Bytes that a translation has at least: no IOMMU has smaller pages."""


class IotlbType(IntEnum):
    """What an IOTLB message says; ACCESS_FAIL is for vhost in the kernel alone."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class Access(IntFlag):
    """What a device may do with, or wants of, the memory behind an I/O virtual address."""

    READ = 1
    WRITE = 2


ACCESS_MAX = int(Access.READ | Access.WRITE)
"""Largest `perm` of an IOTLB message."""
