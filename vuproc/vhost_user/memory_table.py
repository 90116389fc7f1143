"""The guest memory table as the front-end gives it: which regions are legal, what they cover."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vuproc.errors import MessageRefused
from vuproc.fd import Fd, FdKind
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.vhost_user.effects import Region
from vuproc.vhost_user.xen import check_xen, xen_of

TABLE_REGIONS_MAX = 64
"""Regions in one SET_MEM_TABLE: QEMU sends at most 8 and rust-vmm 32; more come by ADD_MEM_REG."""

_ADDRESS_END = 1 << 64


def addresses_of(fields: Mapping[str, int], protocol_features: int) -> Mapping[str, int]:
    """A region's fields with the addresses that all other messages mean.

    With GPA_ADDRESSES those of rings and translations are guest-physical, and a region's user
    address repeats its guest address: it is not asked.
    """
    if not protocol_features & ProtocolFeature.GPA_ADDRESSES:
        return fields
    return {**fields, "user_addr": fields["guest_addr"]}


def make_region(fields: Mapping[str, int], fd: Fd, protocol_features: int) -> Region:
    """One region as a message lays it out, checked by itself; MessageRefused if it is not legal."""
    region = Region(
        guest_addr=fields["guest_addr"],
        size=fields["size"],
        user_addr=fields["user_addr"],
        mmap_offset=fields["mmap_offset"],
        fd=fd,
        xen=xen_of(fields, protocol_features),
    )
    where = f"region at {region.guest_addr:#x}"
    if region.size == 0:
        raise MessageRefused(f"{where}: size 0")
    for start in (region.guest_addr, region.user_addr, region.mmap_offset):
        if start + region.size > _ADDRESS_END:
            raise MessageRefused(f"{where}: {start:#x} + {region.size:#x} wraps around")
    if not (fd.readable and fd.writable):
        raise MessageRefused(f"{where}: its file is not open for reading and writing")
    if region.xen is not None:
        check_xen(region, region.xen.kind)
        return region
    if fd.kind is not FdKind.FILE:
        raise MessageRefused(f"{where}: its descriptor is no file")
    # Touching a mapping past the end of its file is SIGBUS: a worker's death, not an error.
    end, file_size = region.mmap_offset + region.size, fd.size
    if end > file_size:
        raise MessageRefused(f"{where}: ends at {end:#x} of a file of {file_size:#x} bytes")
    return region


def check_disjoint(regions: Iterable[Region]) -> None:
    """MessageRefused if two regions overlap, by guest or by user addresses."""
    table = tuple(regions)
    _check_overlap("guest", [(region.guest_addr, region.size) for region in table])
    mapped = [region for region in table if not region.on_demand]
    _check_overlap("user", [(region.user_addr, region.size) for region in mapped])


def _check_overlap(kind: str, ranges: list[tuple[int, int]]) -> None:
    end = 0
    for start, size in sorted(ranges):
        if start < end:
            raise MessageRefused(f"regions overlap at {kind} address {start:#x}")
        end = start + size


def covers(regions: Iterable[Region], user_addr: int, length: int) -> bool:
    """Whether `length` bytes at a front-end user address lie inside one region."""
    return any(
        region.user_addr <= user_addr and user_addr + length <= region.user_addr + region.size
        for region in regions
        if not region.on_demand
    )


def user_of(regions: Iterable[Region], address: int) -> int:
    """The user address that is meant by that of a ring: the address itself, unless no region has it
    and one has it as guest address, which is what QEMU sends under Xen.
    """
    mapped = [region for region in regions if not region.on_demand]
    if not covers(mapped, address, 1):
        for region in mapped:
            if region.guest_addr <= address < region.guest_addr + region.size:
                return region.user_addr + address - region.guest_addr
    return address


def covers_together(regions: Iterable[Region], user_addr: int, length: int) -> bool:
    """Whether `length` bytes at a front-end user address lie inside regions, one after another."""
    for region in sorted(regions, key=lambda region: region.user_addr):
        end = region.user_addr + region.size
        if length and region.user_addr <= user_addr < end:
            here = min(length, end - user_addr)
            user_addr, length = user_addr + here, length - here
    return length == 0


def same_place(region: Region, fields: Mapping[str, int]) -> bool:
    """Whether a message names this region; REM_MEM_REG's mmap_offset does not count."""
    return (
        region.guest_addr == fields["guest_addr"]
        and region.user_addr == fields["user_addr"]
        and region.size == fields["size"]
    )
