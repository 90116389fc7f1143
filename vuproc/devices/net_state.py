"""What a network device knows beyond its options, for all of its workers, whoever dies."""

from __future__ import annotations

import ctypes
from enum import IntFlag
from typing import ClassVar

from vuproc.spec.net import MAC_BYTES, VLANS

MOST_ADDRESSES = 64
"""Of each table of addresses. A driver that gives more of them gets the frames to all."""
ALL = 0xFFFF_FFFF
"""In place of the number of addresses: more than there is room for."""
VLAN_BYTES = VLANS // 8
_TABLE_BYTES = MOST_ADDRESSES * MAC_BYTES
_TRIES = 1000


class Mode(IntFlag):
    """Which frames the driver is to have (virtio 1.3 section 5.1.6.5.1)."""

    SELECTIVE = 1
    """Not any, as those in promiscuous mode."""
    ALL_MULTICAST = 2
    ALL_UNICAST = 4
    NO_MULTICAST = 8
    NO_UNICAST = 16
    NO_BROADCAST = 32


class Settings(ctypes.Structure):
    """What the driver has said by the control queue. It begins with zeros: all frames pass."""

    _fields_: ClassVar = [
        ("offloads", ctypes.c_uint64),
        ("modes", ctypes.c_uint32),
        ("pairs", ctypes.c_uint32),
        ("unicast", ctypes.c_uint32),
        ("multicast", ctypes.c_uint32),
        ("has_offloads", ctypes.c_uint32),
        ("has_mac", ctypes.c_uint32),
        ("mac", ctypes.c_ubyte * MAC_BYTES),
        ("unicast_table", ctypes.c_ubyte * _TABLE_BYTES),
        ("multicast_table", ctypes.c_ubyte * _TABLE_BYTES),
        ("vlans", ctypes.c_ubyte * VLAN_BYTES),
    ]


class NetState(ctypes.Structure):
    """The link, as an operator has said; the driver's settings, twice; and what is asked of it.

    The settings that count are those of `version % 2`. A change is written to the others, and is
    there with the store to `version`: a death leaves the old ones or the new. They have one writer
    at a time, the worker of the control queue.
    """

    _fields_: ClassVar = [
        ("down", ctypes.c_uint32),
        ("announce", ctypes.c_uint32),
        ("controlled", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("both", Settings * 2),
    ]
    version: int

    def settings(self) -> Settings:
        """A copy of the driver's settings, none of them half changed."""
        for _ in range(_TRIES):
            version = self.version
            copy = Settings.from_buffer_copy(self.both[version % 2])
            if version == self.version:
                return copy
        raise RuntimeError("the settings change faster than they can be read")

    def settle(self, settings: Settings) -> None:
        """These are the driver's settings from now on."""
        self.both[(self.version + 1) % 2] = settings
        self.version = (self.version + 1) & 0xFFFF_FFFF  # it is these that count, in one store
