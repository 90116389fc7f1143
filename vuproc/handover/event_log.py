"""The last events of a device, in memory that outlives its master.

`SLOTS` slots of `SLOT_BYTES`, used in a circle: the event's number (8 bytes, from 1 on; 0: none),
its length (4), and its JSON. The number is written last, and cleared first.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

SLOTS = 128
SLOT_BYTES = 512
LOG_BYTES = SLOTS * SLOT_BYTES

_HEAD = struct.Struct("=QI")
_MOST = SLOT_BYTES - _HEAD.size
_TEXT_MOST = 64
"""Bytes to which a text is cut first of an event that is too long."""


class EventLog:
    """Owns `memory`, of `LOG_BYTES` bytes, zeros at first."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.last = 0
        """The number of the latest event; 0: there was none."""

    def add(self, event: dict[str, Any]) -> None:
        """Note an event; its texts are shortened if it is too long."""
        data = msgspec.json.encode(event)
        length = 2 * _TEXT_MOST
        while len(data) > _MOST and length:
            length //= 2
            data = msgspec.json.encode({key: _cut(value, length) for key, value in event.items()})
        if len(data) > _MOST:
            data = msgspec.json.encode({key: event[key] for key in ("time", "event")})[:_MOST]
        self._put(self.last + 1, data)

    def since(self, number: int) -> tuple[list[dict[str, Any]], int]:
        """The events after that number, oldest first, each with its `number`; and how many of them
        are there no more.
        """
        first = max(number, self.last - SLOTS) + 1
        found = []
        for each in range(first, self.last + 1):
            data = self._at(each)
            if data is not None:
                found.append({"number": each, **data})
        return found, max(0, self.last - number) - len(found)

    def go_on(self, left: memoryview) -> None:
        """Begin with what a predecessor has left. Closes `left`."""
        with left:
            ours = self.since(0)[0]
            self._memory[:] = left
        numbers = [_HEAD.unpack_from(self._memory, at)[0] for at in range(0, LOG_BYTES, SLOT_BYTES)]
        self.last = max(numbers)
        for event in ours:
            event.pop("number")
            self.add(event)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.release()

    def _put(self, number: int, data: bytes) -> None:
        at = (number - 1) % SLOTS * SLOT_BYTES
        _HEAD.pack_into(self._memory, at, 0, len(data))
        self._memory[at + _HEAD.size : at + _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._memory, at, number, len(data))
        self.last = number

    def _at(self, number: int) -> dict[str, Any] | None:
        at = (number - 1) % SLOTS * SLOT_BYTES
        found, length = _HEAD.unpack_from(self._memory, at)
        if found != number or length > _MOST:
            return None
        try:
            return msgspec.json.decode(
                self._memory[at + _HEAD.size : at + _HEAD.size + length], type=dict[str, Any]
            )
        except msgspec.MsgspecError:
            return None  # its writer has died over it


def _cut(value: Any, length: int) -> Any:
    if isinstance(value, str) and len(value) > length:
        return value[:length] + "..."
    return value
