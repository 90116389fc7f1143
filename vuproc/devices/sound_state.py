"""How far the driver has come with a stream of a sound device, and what outlives workers of it."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import ClassVar

from vuproc.spec.sound import SoundRequest


class State(IntEnum):
    """How far the driver has come with a stream (virtio 1.3, 5.14.6.6.1)."""

    NONE = 0
    SET = 1
    PREPARED = 2
    STARTED = 3
    STOPPED = 4
    RELEASED = 5


OPEN = frozenset({State.PREPARED, State.STARTED, State.STOPPED})
"""Where there may be transfers."""
COMMANDS: dict[SoundRequest, tuple[State, frozenset[State]]] = {
    SoundRequest.PCM_PREPARE: (
        State.PREPARED,
        # Linux prepares a stream that it has stopped, if it has no transfers left.
        frozenset({State.SET, State.PREPARED, State.STOPPED, State.RELEASED}),
    ),
    SoundRequest.PCM_START: (State.STARTED, frozenset({State.PREPARED, State.STOPPED})),
    SoundRequest.PCM_STOP: (State.STOPPED, frozenset({State.STARTED})),
    SoundRequest.PCM_RELEASE: (State.RELEASED, frozenset({State.PREPARED, State.STOPPED})),
}
"""What a command leads to, and from where (5.14.6.6.1)."""


class StreamState(ctypes.Structure):
    """A stream, as it outlives workers."""

    _fields_: ClassVar = [
        ("word", ctypes.c_uint64),
        ("position", ctypes.c_uint64),
        ("note", ctypes.c_uint64),
        ("due", ctypes.c_uint64),
    ]
