"""Which frames the driver of a network device wants (virtio 1.3 section 5.1.6.5)."""

from __future__ import annotations

import ctypes

from vuproc.devices.net_state import ALL, Mode, Settings
from vuproc.spec.net import MAC_BYTES, NetFeature

BROADCAST = b"\xff" * MAC_BYTES
_GROUP = 1
"""Bit of the first byte of an address that stands for several interfaces."""
_TAGGED = b"\x81\0"
_TYPE = slice(12, 14)
_TAG = slice(14, 16)


class Filter:
    """Tells the frames for a driver that has these `settings` from those which it is not to have.

    `mac`: the address of its interface; None: it has not said which it made up.
    """

    def __init__(self, settings: Settings, features: int, mac: bytes | None) -> None:
        modes = settings.modes
        selective = bool(features & NetFeature.CTRL_RX and modes & Mode.SELECTIVE)
        self.vlans = bytes(settings.vlans) if features & NetFeature.CTRL_VLAN else None
        """512 bytes with a bit for each that passes; None: all of them."""
        self.unicast: frozenset[bytes] | None = None
        self.multicast: frozenset[bytes] | None = None
        """The addresses that pass; None: all of them."""
        self.broadcast = True
        if selective:
            self.broadcast = not modes & Mode.NO_BROADCAST
            if modes & Mode.NO_UNICAST:
                self.unicast = frozenset[bytes]()
            elif not modes & Mode.ALL_UNICAST and settings.unicast != ALL and mac is not None:
                self.unicast = _table(settings.unicast_table, settings.unicast) | {mac}
            if modes & Mode.NO_MULTICAST:
                self.multicast = frozenset[bytes]()
            elif not modes & Mode.ALL_MULTICAST and settings.multicast != ALL:
                self.multicast = _table(settings.multicast_table, settings.multicast)
        self.passes_all = not selective or (
            self.broadcast and (self.vlans, self.unicast, self.multicast) == (None,) * 3
        )
        """Whether no frame needs to be looked at. In promiscuous mode VLANs pass, too."""

    def passes(self, frame: bytes) -> bool:
        """Whether the driver is to have it."""
        if self.passes_all:
            return True
        if self.vlans is not None and frame[_TYPE] == _TAGGED:
            vlan = int.from_bytes(frame[_TAG], "big") & 0xFFF
            if not self.vlans[vlan // 8] >> vlan % 8 & 1:
                return False
        address = frame[:MAC_BYTES]
        if address == BROADCAST:
            return self.broadcast
        wanted = self.multicast if address[0] & _GROUP else self.unicast
        return wanted is None or address in wanted


def _table(table: ctypes.Array[ctypes.c_ubyte], count: int) -> frozenset[bytes]:
    data = bytes(table)
    return frozenset(data[at : at + MAC_BYTES] for at in range(0, count * MAC_BYTES, MAC_BYTES))
