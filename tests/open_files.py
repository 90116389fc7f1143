"""How many files a process has open. A master gets the listener of a worker's filter of system
calls once the worker has locked itself in, some time after its start: those are counted apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from vuproc.pool.hangup import LINK


def open_files(pid: int) -> int:
    """Without listeners. Raises FileNotFoundError if there is no such process."""
    return sum(name != LINK for name in _names(pid))


def listeners(pid: int) -> int:
    """One for each worker that is known to be locked in."""
    return sum(name == LINK for name in _names(pid))


def _names(pid: int) -> Iterator[str]:
    """What each is called in /proc; the empty name for one that is closed meanwhile."""
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        try:
            yield os.readlink(f"{folder}/{number}")
        except FileNotFoundError:
            yield ""
