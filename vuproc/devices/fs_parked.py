"""Open files that outlive the worker which has opened them: they are parked in sockets.

So each worker, and each that follows a dead one, gets at the very files that the guest has opened:
what was deleted meanwhile, or could not be opened once more. There are some sockets, each with the
files of some nodes, and a key a file, which has node and handle. All of it is done under the lock
of the nodes.
"""

from __future__ import annotations

import struct
from contextlib import AbstractContextManager
from typing import Protocol

from vuproc.fd import Fd
from vuproc.parking import ParkedFiles, lot

LANES = 8
"""Pairs of sockets. One holds about 270 files, with the default of net.core.wmem_max."""
MOST_IN_LANE = 240
"""Files of one socket, so that there is room for one that is sent to the end."""
_KEY = struct.Struct("<QQ")


class Lock(Protocol):
    """What keeps the other workers away."""

    def locked(self) -> AbstractContextManager[None]: ...  # noqa: D102


def lane_files() -> dict[str, Fd]:
    """The sockets, by the names that `Parked` looks for."""
    files = {}
    for lane in range(LANES):
        files[f"to-{lane}"], files[f"out-{lane}"] = lot()
    return files


class Parked:
    """The files that the guest has open, by node and handle."""

    def __init__(self, lanes: list[tuple[Fd, Fd]], lock: Lock) -> None:
        """`lanes`: both ends of each pair of sockets, which stay the caller's."""
        self._lanes = [ParkedFiles(to, out, _KEY.size) for to, out in lanes]
        self._lock = lock

    def close(self) -> None:
        """Let go of the sockets; what is parked stays."""
        for lane in self._lanes:
            lane.close()

    def park(self, node: int, handle: int, file: Fd) -> bool:
        """Keep a file, unless it is kept already; False: there are too many."""
        with self._lock.locked():
            keys = self._keys(node)
            if (node, handle) in keys:
                return True
            return len(keys) < MOST_IN_LANE and self._send(node, (node, handle), file)

    def find(self, node: int, handle: int | None = None) -> Fd | None:
        """A file that is parked, of any handle if none is given: another descriptor of it. OSError
        EMFILE if this worker has too many open.
        """
        with self._lock.locked():
            for place, key in enumerate(self._keys(node)):
                if key[0] == node and handle in (None, key[1]):
                    return self._lane(node).at(place)
        return None

    def drop(self, node: int, handle: int) -> None:
        """Let go of a file; nothing happens if it is not parked."""
        with self._lock.locked():
            keys = self._keys(node)
            if (node, handle) not in keys:
                return
            last = len(keys) - 1 - keys[::-1].index((node, handle))
            for key in keys[: last + 1]:
                if key != (node, handle) and not self._send_to_end(node, key):
                    return  # it stays until the guest unmounts
                self._lane(node).drop_first()

    def clear(self) -> None:
        """Let go of all of them."""
        with self._lock.locked():
            for lane in self._lanes:
                for _ in lane.kept():
                    lane.drop_first()

    def _lane(self, node: int) -> ParkedFiles:
        return self._lanes[node % LANES]

    def _keys(self, node: int) -> list[tuple[int, int]]:
        """Whose files are in the socket of a node, in their order."""
        return [(key[0], key[1]) for key in map(_KEY.unpack, self._lane(node).kept())]

    def _send_to_end(self, node: int, key: tuple[int, int]) -> bool:
        with self._lane(node).at(0) as first:
            return self._send(node, key, first)

    def _send(self, node: int, key: tuple[int, int], file: Fd) -> bool:
        try:
            self._lane(node).put(_KEY.pack(*key), file)
        except OSError:  # the socket is full, or the user has too many on their way
            return False
        return True
