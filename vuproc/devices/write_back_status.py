"""What is known of writing back: memory that the helper and the master share."""

from __future__ import annotations

import ctypes
import time
from typing import ClassVar

QUIET, WRITING, TRYING, CONFLICT = range(4)
_STATES = ("up to date", "writing", "trying again", "stopped")
MOST_WORDS = 400


class WriteBackStatus(ctypes.Structure):
    """`asked` is the master's, all else the helper's. `answered`: the last number of `asked` that a
    run has answered to which began after it. `at`: seconds since 1970 at which the last run that is
    in the store began. `left`: pieces of the run that is under way.
    """

    _fields_: ClassVar = [
        ("asked", ctypes.c_uint64),
        ("answered", ctypes.c_uint64),
        ("runs", ctypes.c_uint64),
        ("at", ctypes.c_uint64),
        ("pieces", ctypes.c_uint64),
        ("left", ctypes.c_uint64),
        ("state", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
        ("words", ctypes.c_char * MOST_WORDS),
    ]

    def say(self, state: int, why: str = "") -> None:
        """What it is about, and what is in the way."""
        data = why.encode("utf-8", "replace")[:MOST_WORDS]
        self.length = 0
        ctypes.memmove(ctypes.addressof(self) + WriteBackStatus.words.offset, data, len(data))
        self.length = len(data)
        self.state = state

    @property
    def why(self) -> str:
        """What is in the way, or ""."""
        at = ctypes.addressof(self) + WriteBackStatus.words.offset
        return ctypes.string_at(at, min(self.length, MOST_WORDS)).decode("utf-8", "replace")


def described(status: WriteBackStatus, changed: int) -> dict[str, str | int]:
    """The same for `vuproc status`. `changed`: bytes of the pieces that are not in the store."""
    state = _STATES[min(status.state, CONFLICT)]
    if status.state == QUIET and changed:
        state = "waiting"
    last = "never"
    if status.at:
        last = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.at))
    return {
        "state": state,
        "why": status.why,
        "last": last,
        "runs": status.runs,
        "changed_bytes": changed,
        "pieces_left": status.left,
        "pieces_written": status.pieces,
        "asked": status.asked,
        "answered": status.answered,
    }
