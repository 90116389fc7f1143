"""Frames to and from a network interface of the host, with its offloads (Linux, tun/tap)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from typing import ClassVar

from vuproc.devices.net_backend import Backend
from vuproc.fd import Fd
from vuproc.shared import IFREQ
from vuproc.spec.net import HEADER, MAX_FRAME, NetFeature

TUNSETVNETHDRSZ = 0x400454D8
"""Linux, if_tun.h, as what follows: the size of the header that frames begin with."""
TUNSETVNETLE = 0x400454DC
"""Whether that header is little-endian."""
TUNSETOFFLOAD = 0x400454D0
"""What may be left to whoever reads."""
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8
TUN_F_USO4, TUN_F_USO6 = 0x20, 0x40
TUNSETQUEUE = 0x400454D9
"""Whether frames come by this queue of the interface."""
IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x0200, 0x0400
USO_SINCE = (6, 2)
"""Linux, in which interfaces take segments of UDP."""

_TCP = (
    NetFeature.CSUM
    | NetFeature.GUEST_CSUM
    | NetFeature.HOST_TSO4
    | NetFeature.HOST_TSO6
    | NetFeature.HOST_ECN
    | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6
    | NetFeature.GUEST_ECN
)
"""Checksums and segments of TCP that driver and interface leave to each other."""
_UDP = NetFeature.HOST_USO | NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6

_LEFT_TO_GUEST = {
    NetFeature.GUEST_CSUM: TUN_F_CSUM,
    NetFeature.GUEST_TSO4: TUN_F_TSO4,
    NetFeature.GUEST_TSO6: TUN_F_TSO6,
    NetFeature.GUEST_ECN: TUN_F_TSO_ECN,
}
_BOTH_USO = NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6
"""An interface leaves segments of UDP to its reader in both, or in neither."""
_MOST = HEADER.size + MAX_FRAME


def features() -> NetFeature:
    """What driver and interface may leave to each other, as this kernel has it."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    version = (0, 0) if release is None else tuple(map(int, release.groups()))
    return _TCP | _UDP if version >= USO_SINCE else _TCP


class Tap(Backend):
    """One queue of an interface, open with headers (`shared.tap`); it stays the caller's.

    The header is passed on as it is: it is the kernel that reads it, and that checks it.
    """

    with_headers: ClassVar[bool] = True

    def __init__(self, file: Fd) -> None:
        self._file = file
        for request, value in ((TUNSETVNETHDRSZ, HEADER.size), (TUNSETVNETLE, 1)):
            fcntl.ioctl(file.fileno(), request, value.to_bytes(4, "little"))

    def accept(self, features: int) -> None:
        """Leave to the driver what it can do; TCP's segments only with their checksums."""
        left = 0
        if features & NetFeature.GUEST_CSUM:
            for feature, flag in _LEFT_TO_GUEST.items():
                left |= flag if features & feature else 0
            if features & _BOTH_USO == _BOTH_USO:
                left |= TUN_F_USO4 | TUN_F_USO6
        fcntl.ioctl(self._file.fileno(), TUNSETOFFLOAD, left)

    def use(self, used: bool) -> None:
        """Take part in what the interface distributes over its queues, or not."""
        flags = IFF_ATTACH_QUEUE if used else IFF_DETACH_QUEUE
        try:
            fcntl.ioctl(self._file.fileno(), TUNSETQUEUE, IFREQ.pack(b"", flags))
        except OSError as error:
            if error.errno != errno.EINVAL:  # it is so, or there is one queue
                raise

    def send(self, frame: bytes) -> bool:
        """Give it to the interface, which takes none while it is down."""
        with contextlib.suppress(OSError):
            return os.write(self._file.fileno(), frame) == len(frame)
        return False

    def receive(self) -> bytes | None:
        """What the interface has for the guest."""
        with contextlib.suppress(OSError):
            return os.read(self._file.fileno(), _MOST)
        return None

    def fileno(self) -> int:
        """The interface's own."""
        return self._file.fileno()
