"""The in-flight region as the front-end gives it: which are legal, where a ring's record lies."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from vuproc.errors import MessageRefused
from vuproc.fd import Fd, FdKind
from vuproc.spec.inflight import RECORD_ALIGN
from vuproc.spec.ring_layout import RingLayout
from vuproc.spec.virtio import QUEUE_SIZE_MAX
from vuproc.vhost_user.effects import Inflight


class InflightRegion(msgspec.Struct, frozen=True, kw_only=True):
    """One record for each of the first `num_queues` rings, each for `queue_size` descriptors.

    The first begins `offset` bytes into `fd`. Only the extent is known to be good, not the content.
    """

    fd: Fd
    offset: int
    num_queues: int
    queue_size: int

    def record(self, layout: RingLayout, index: int, size: int) -> Inflight | None:
        """The record of one ring of `size` descriptors; None if the region has none for it.

        MessageRefused if the ring is larger than its record.
        """
        if index >= self.num_queues:
            return None
        if size > self.queue_size:
            raise MessageRefused(
                f"ring size {size} is above {self.queue_size}, the in-flight region's; "
                f"give QEMU queue-size={size} and the device file queue_size: {size}"
            )
        offset = self.offset + index * layout.record_bytes(self.queue_size)
        return Inflight(self.fd, offset, self.queue_size)


def check_extent(num_queues: int, queue_size: int, *, queues_max: int, size_max: int) -> None:
    """MessageRefused unless a region of these dimensions is one that this device could use."""
    if not 0 < num_queues <= queues_max:
        raise MessageRefused(f"in-flight region of {num_queues} queues, 1 to {queues_max} allowed")
    if not 0 < queue_size <= size_max:
        raise MessageRefused(f"in-flight queue size {queue_size}, 1 to {size_max} are allowed")


def make_region(
    layout: RingLayout, fields: Mapping[str, int], fd: Fd, num_queues: int
) -> InflightRegion:
    """The region as a message lays it out, checked by itself; MessageRefused if it is not legal.

    `num_queues` is the device's. A region of larger queues than ours is good, if it holds them.
    """
    region = InflightRegion(
        fd=fd,
        offset=fields["mmap_offset"],
        num_queues=fields["num_queues"],
        queue_size=fields["queue_size"],
    )
    check_extent(
        region.num_queues, region.queue_size, queues_max=num_queues, size_max=QUEUE_SIZE_MAX
    )
    size, needed = fields["mmap_size"], region.num_queues * layout.record_bytes(region.queue_size)
    if size < needed:
        raise MessageRefused(f"in-flight region of {size} bytes, its queues take {needed}")
    if region.offset % RECORD_ALIGN:
        raise MessageRefused(f"in-flight region at {region.offset:#x}, not at a multiple of 64")
    if fd.kind is not FdKind.FILE:
        raise MessageRefused("the in-flight region's descriptor is no file")
    if not (fd.readable and fd.writable):
        raise MessageRefused("the in-flight region's file is not open for reading and writing")
    end, file_size = region.offset + size, fd.size
    if end > file_size:
        raise MessageRefused(
            f"the in-flight region ends at {end:#x} of a file of {file_size:#x} bytes"
        )
    return region
