"""Sockets of the host that outlive the worker which opened them, by slot and serial."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vuproc.fd import Fd, HasFileno
from vuproc.parking import ParkedFiles, lot

ROOM = 1 << 20
"""Bytes asked for, which is more than enough for what connections there may be."""
_NAME = struct.Struct("=QQ")


class Parked(NamedTuple):
    """A descriptor, owned by whoever has this, and what it was parked as."""

    slot: int
    serial: int
    file: Fd


def parking() -> tuple[Fd, Fd]:
    """Both ends of a new one, to be shared files. Raises OSError."""
    return lot(ROOM)


class Park:
    """The descriptors between two ends, each with the slot and the serial of its connection."""

    def __init__(self, near: HasFileno, far: HasFileno) -> None:
        self._files = ParkedFiles(near, far, _NAME.size)

    def put(self, slot: int, serial: int, file: HasFileno) -> None:
        """Keep a copy. Raises OSError if there is no room, or the kernel keeps as many for this
        user as RLIMIT_NOFILE allows.
        """
        self._files.put(_NAME.pack(slot, serial), file)

    def look(self) -> Iterator[Parked]:
        """Copies of all that are there, the oldest first. Raises OSError if there is no descriptor
        to be had for one.
        """
        for place, key in enumerate(self._files.kept()):
            slot, serial = _NAME.unpack(key)
            yield Parked(slot, serial, self._files.at(place))

    def sweep(self, wanted: Callable[[int, int], bool]) -> int:
        """Take out all but those wanted, and what is there twice; how many are left.

        Raises OSError if there is no room to do so: nothing is lost then.
        """
        stay: set[bytes] = set()
        for key in self._files.kept():
            if key not in stay and wanted(*_NAME.unpack(key)):
                with self._files.at(0) as first:
                    self._files.put(key, first)
                stay.add(key)
            self._files.drop_first()
        return len(stay)

    def close(self) -> None:
        """Close our copies of the ends, not what is parked."""
        self._files.close()
