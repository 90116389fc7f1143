"""One queue's in-flight record (vhost-user, "Inflight I/O tracking"): its parts and its size."""

from __future__ import annotations

from vuproc.spec.layout import Layout

INFLIGHT_SPLIT_HEADER = Layout(
    "inflight_split_hdr",
    "=QHHHH",
    "features",
    "version",
    "desc_num",
    "last_batch_head",
    "used_idx",
)
INFLIGHT_SPLIT_DESC = Layout("inflight_split_dsc", "=B5xHQ", "inflight", "next", "counter")
INFLIGHT_PACKED_HEADER = Layout(
    "inflight_packed_hdr",
    "=QHHHHHHBB7x3x",
    "features",
    "version",
    "desc_num",
    "free_head",
    "old_free_head",
    "used_idx",
    "old_used_idx",
    "used_wrap",
    "old_used_wrap",
)
INFLIGHT_PACKED_DESC = Layout(
    "inflight_packed_dsc",
    "=BxHHHQHHIQ",
    "inflight",
    "next",
    "last",
    "num",
    "counter",
    "id",
    "flags",
    "len",
    "addr",
)

RECORD_ALIGN = 64
"""Each record of a region begins at a multiple of it, counted from the region's beginning.

The specification leaves the distance to whoever made the region. This one is libvhost-user's and
DPDK's, so that a region can move from one back-end to another.
"""


def split_record_bytes(queue_size: int) -> int:
    """Bytes from one split queue's record to the next, for queues of `queue_size` descriptors."""
    return _aligned(INFLIGHT_SPLIT_HEADER.size + INFLIGHT_SPLIT_DESC.size * queue_size)


def packed_record_bytes(queue_size: int) -> int:
    """The same for packed queues."""
    return _aligned(INFLIGHT_PACKED_HEADER.size + INFLIGHT_PACKED_DESC.size * queue_size)


def _aligned(size: int) -> int:
    return -(-size // RECORD_ALIGN) * RECORD_ALIGN
