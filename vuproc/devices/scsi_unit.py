"""A logical unit: its store, and what outlives workers of what became of it."""

from __future__ import annotations

import ctypes
from typing import ClassVar

from vuproc.devices.blk_storage import Storage, open_size
from vuproc.devices.scsi_options import UnitOptions
from vuproc.devices.scsi_task import CheckCondition
from vuproc.spec.scsi import LUN_BYTES
from vuproc.spec.scsi_commands import REPORT_LUNS_UNIT, Key, Sense

_SINGLE_LEVEL = 1
_FLAT = 0x40
_LUN_BITS = 0x3FFF


class UnitState(ctypes.Structure):
    """Shared by all workers. A count that is `due` is ahead of its fellow until that was told.

    size: bytes of the store. cached: there is a write cache. raised and reported: how many unit
    attentions there were and were told, and the last one's sense. Only the worker of the control
    queue writes size, plugged, raised and what is told by events.
    """

    _fields_: ClassVar = [
        ("size", ctypes.c_uint64),
        ("plugged", ctypes.c_uint32),
        ("cached", ctypes.c_uint32),
        ("ejected", ctypes.c_uint32),
        ("prevented", ctypes.c_uint32),
        ("sense", ctypes.c_uint32),
        ("raised", ctypes.c_uint32),
        ("reported", ctypes.c_uint32),
        ("plug_due", ctypes.c_uint32),
        ("plug_told", ctypes.c_uint32),
        ("size_due", ctypes.c_uint32),
        ("size_told", ctypes.c_uint32),
    ]


class Unit:
    """One logical unit in a worker. Owns its storage."""

    def __init__(
        self,
        options: UnitOptions,
        address: tuple[int, int],
        state: UnitState,
        storage: Storage,
        *,
        cached: bool,
    ) -> None:
        self.options = options
        self.address = address
        self.state = state
        self.storage = storage
        self.block = options.block
        self.file = storage.fileno()
        self.cached_by_default = cached
        self.removable = options.removable or options.is_cd
        self.neighbours: list[Unit] = []
        """All units of its target."""

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return int(self.state.size) // self.block

    @property
    def durable(self) -> bool:
        """Whether each write is to be safe at once."""
        return not self.state.cached

    @property
    def attention(self) -> bool:
        """Whether there is something that the driver has not been told."""
        return bool(self.state.raised != self.state.reported)

    def raise_attention(self, sense: Sense) -> None:
        """The next command is to end with it. In the worker of the control queue."""
        self.state.sense = sense
        self.state.raised += 1

    def reset(self) -> None:
        """As it was at the beginning, with its tray closed."""
        self.state.cached = self.cached_by_default
        self.state.prevented = 0
        self.state.ejected = 0

    def look(self) -> bool:
        """Take up the size that its file has by now; whether that is another."""
        size = open_size(self.file)
        if size == self.state.size:
            return False
        self.state.size = size
        self.raise_attention(Sense.CAPACITY_CHANGED)
        self.state.size_due += 1
        return True

    def check_medium(self) -> None:
        """Raises CheckCondition if the medium was ejected."""
        if self.state.ejected:
            raise CheckCondition(Key.NOT_READY, Sense.NO_MEDIUM)

    def check_writable(self) -> None:
        """Raises CheckCondition if nothing of it may be changed."""
        if self.options.fixed:
            raise CheckCondition(Key.DATA_PROTECT, Sense.WRITE_PROTECTED)

    def extent(self, lba: int, count: int) -> tuple[int, int]:
        """Offset and length in bytes of so many blocks; Python's integers do not wrap."""
        blocks = self.blocks
        if lba > blocks or lba + count > blocks or (count == 0 and lba == blocks > 0):
            raise CheckCondition(Key.ILLEGAL_REQUEST, Sense.LBA_OUT_OF_RANGE, lba)
        return lba * self.block, count * self.block

    def close(self) -> None:
        """Close the store."""
        self.storage.close()


def address_of(lun: bytes) -> tuple[int, int] | None:
    """Target and LUN in the eight bytes of a request; None: there can be none (5.6.6.1).

    That of the well-known unit is REPORT_LUNS_UNIT.
    """
    if lun[0] != _SINGLE_LEVEL or any(lun[4:LUN_BYTES]):
        return None
    number = lun[2] << 8 | lun[3]
    if number == REPORT_LUNS_UNIT:
        return lun[1], number
    if (lun[2] and not lun[2] & _FLAT) or lun[2] & 0x80:
        return None
    return lun[1], number & _LUN_BITS


def lun_of(address: tuple[int, int]) -> bytes:
    """The eight bytes of an event. Linux and QEMU want what REPORT LUNS says there."""
    target, lun = address
    high = lun >> 8 | (_FLAT if lun > 255 else 0)
    return bytes((_SINGLE_LEVEL, target, high, lun & 0xFF)) + bytes(4)
