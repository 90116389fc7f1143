"""virtio-net as far as vhost-user speaks of it (virtio 1.3 section 5.1)."""

from __future__ import annotations

from enum import IntFlag


class NetFeature(IntFlag):
    """Feature bits."""

    MTU = 1 << 3
    """The configuration space says the largest MTU."""


MTU_MIN = 68
MTU_MAX = 65535
"""Bytes that an MTU may have (virtio 1.3 section 5.1.4.1)."""

MAC_BYTES = 6
