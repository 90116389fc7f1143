"""The size of one queue's in-flight record (vhost-user, "Inflight I/O tracking")."""

from __future__ import annotations

from vuproc.spec.vhost_user import (
    INFLIGHT_PACKED_DESC,
    INFLIGHT_PACKED_HEADER,
    INFLIGHT_SPLIT_DESC,
    INFLIGHT_SPLIT_HEADER,
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
