"""Events that wait for the driver, in memory that outlives workers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, ClassVar

from vuproc import shared
from vuproc.fd import Fd
from vuproc.spec.input import EVENT

if TYPE_CHECKING:
    from vuproc.shm.request import Request

MOST = 2048
"""Events that may wait."""
INBOX_BYTES = 4096
"""Bytes that were read from a source and are not events yet."""


class Place(ctypes.Structure):
    """How far all is: the events that are there, and the bytes that they were made of."""

    _fields_: ClassVar = [
        ("filled", ctypes.c_uint64),
        ("inbox", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
    ]


class State(ctypes.Structure):
    """What outlives a worker. Of the two places the one that `chosen` has the number of counts."""

    _fields_: ClassVar = [
        ("driven", ctypes.c_uint64),
        ("chosen", ctypes.c_uint64),
        ("places", Place * 2),
        ("sent", ctypes.c_uint64),
        ("sent_then", ctypes.c_uint64),
        ("note", ctypes.c_uint64),
        ("events", ctypes.c_uint64 * MOST),
        ("inboxes", (ctypes.c_uint8 * INBOX_BYTES) * 2),
    ]


def packed(kind: int, code: int, value: int) -> int:
    """One event as a number, as the driver sees its 8 bytes. LayoutError for what does not fit."""
    data = EVENT.pack(type=kind, code=code, value=value & 0xFFFFFFFF)
    return int.from_bytes(data, "little")


class Backlog:
    """The events, oldest first, and two inboxes for the bytes of a source, one of which counts.

    Each event is sent once, whoever dies: a note says in which buffer it is. Whoever finds the note
    asks whether the driver has seen that buffer; if not, the event waits still.
    """

    def __init__(self, file: Fd) -> None:
        self._state = shared.struct(State, file)

    @property
    def driven(self) -> bool:
        """Whether there is a driver, as far as anybody has said."""
        return bool(self._state.driven)

    @driven.setter
    def driven(self, there: bool) -> None:
        self._state.driven = there

    @property
    def _place(self) -> Place:
        place: Place = self._state.places[self._state.chosen & 1]
        return place

    @property
    def waiting(self) -> int:
        """Events that are not sent yet."""
        return int(self._place.filled - self._state.sent)

    @property
    def room(self) -> int:
        """How many more may wait."""
        return MOST - self.waiting

    def push(self, events: Sequence[int], used: int | None = None) -> None:
        """Add events, at most `room`: all of them are there at once, or none. `used`: the bytes of
        the inbox that are done with from then on, counted from its beginning.
        """
        place = self._place
        for number, event in enumerate(events, start=place.filled):
            self._state.events[number % MOST] = event
        self._go_to(place.filled + len(events), place.inbox, place.used if used is None else used)

    def settle(self, unfinished: AbstractSet[int]) -> None:
        """Before anything is sent: whether the driver has seen the event over which a worker died.
        `unfinished`: the heads of the buffers that it has not seen (`Device.unfinished`).
        """
        if self._state.note and self._state.note - 1 not in unfinished:
            self._state.sent = self._state.sent_then
        self._state.note = 0

    def send(self, buffer: Request, publish: Callable[[], None]) -> None:
        """Give the driver the oldest one that waits, of which there is one. `publish` shows it what
        is finished.
        """
        number = self._state.sent
        event = int(self._state.events[number % MOST])
        self._state.sent_then = number + 1
        self._state.note = buffer.head + 1
        try:
            buffer.write(event.to_bytes(EVENT.size, "little"))
            buffer.finish()
            publish()
        except Exception:
            self._state.note = 0  # the ring is gone: it was not seen
            raise
        self._state.sent = number + 1
        self._state.note = 0

    # The inbox.

    def unread(self) -> memoryview:
        """The rest of the inbox, zeros after what has come."""
        place = self._place
        return memoryview(self._state.inboxes[place.inbox & 1]).cast("B")[place.used :]

    def empty_inbox(self, kept: int) -> memoryview:
        """Room for more bytes of the source, after the next `kept` ones, which are not used yet.

        What is read into it is there at once: it was all zeros, and a source has none where its
        bytes end.
        """
        place = self._place
        other = 1 - (place.inbox & 1)
        room = memoryview(self._state.inboxes[other]).cast("B")
        room[:] = bytes(self.unread()[:kept]).ljust(INBOX_BYTES, b"\0")
        self._go_to(place.filled, other, 0)
        return room[kept:]

    @property
    def used(self) -> int:
        """Bytes of the inbox that are done with."""
        return int(self._place.used)

    def _go_to(self, filled: int, inbox: int, used: int) -> None:
        other = 1 - (self._state.chosen & 1)
        place = self._state.places[other]
        place.filled, place.inbox, place.used = filled, inbox, used
        self._state.chosen = other  # this store decides
