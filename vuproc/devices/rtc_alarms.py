"""The alarms of a real-time clock, one a clock: when each expires, and whether that was said."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import ClassVar

MAX_CLOCKS = 8
"""Clocks of one device, each with its alarm."""


class AlarmState(IntEnum):
    """Of one alarm. All but OFF are enabled."""

    OFF = 0
    WAITING = 1
    """The clock has not come to its time."""
    EXPIRED = 2
    """It has, and the driver is to be told."""
    TOLD = 3
    """The driver was told. Should the clock go back, it waits again."""


class KeptAlarms(ctypes.Structure):
    """What outlives a worker: time in nanoseconds and state of each clock's alarm, and a note of
    whom the driver is being told of by which buffer: the clock << 32 | the buffer's head + 1.
    """

    _fields_: ClassVar = [
        ("times", ctypes.c_uint64 * MAX_CLOCKS),
        ("states", ctypes.c_uint64 * MAX_CLOCKS),
        ("note", ctypes.c_uint64),
    ]


class Alarms:
    """The alarms of `count` clocks; `now` tells a clock's time by its number, in nanoseconds.

    A state is one store, and decides: a death leaves it as it was, or as it is to be.
    """

    def __init__(self, kept: KeptAlarms, count: int, now: Callable[[int], int]) -> None:
        self._kept = kept
        self._count = count
        self._now = now

    def time(self, clock: int) -> int:
        """What the alarm is set to."""
        return int(self._kept.times[clock])

    def enabled(self, clock: int) -> bool:
        """Whether it is to expire."""
        return bool(self._kept.states[clock] != AlarmState.OFF)

    def set(self, clock: int, when: int, enabled: bool) -> None:
        """Set the time, and whether it is enabled. Nothing of the old time expires any more."""
        self._kept.states[clock] = AlarmState.OFF
        self._kept.times[clock] = when
        self.enable(clock, enabled)

    def enable(self, clock: int, enabled: bool) -> None:
        """Enabled at a time that has passed it expires at once, whether it did before or not."""
        if self._kept.note >> 32 == clock:
            self._kept.note = 0
        self._kept.states[clock] = AlarmState.WAITING if enabled else AlarmState.OFF
        self._look_at(clock)

    def state(self, clock: int) -> AlarmState:
        """Where it is in its life."""
        return AlarmState(self._kept.states[clock])

    def restore(self, clock: int, when: int, state: AlarmState) -> None:
        """Set it as another was. One that expired while the driver was being told is told again."""
        self._kept.note = 0
        self._kept.states[clock] = AlarmState.OFF
        self._kept.times[clock] = when
        self._kept.states[clock] = state

    def again(self) -> None:
        """The driver has reset the device: what is enabled and not in the future expires anew."""
        for clock in range(self._count):
            if self.enabled(clock):
                self.enable(clock, True)

    def look(self) -> list[int]:
        """Look at all clocks; those whose alarms the driver is to be told of."""
        for clock in range(self._count):
            self._look_at(clock)
        states = self._kept.states[: self._count]
        return [clock for clock, state in enumerate(states) if state == AlarmState.EXPIRED]

    @property
    def noted(self) -> bool:
        """Whether a worker died while it told of one: `settle` that first."""
        return bool(self._kept.note)

    def telling(self, clock: int, head: int) -> None:
        """The driver is told of it next, by the buffer with this head."""
        self._kept.note = clock << 32 | head + 1

    def told(self, clock: int) -> None:
        """The driver was told of it."""
        self._kept.states[clock] = AlarmState.TOLD
        self._kept.note = 0

    def settle(self, unfinished: frozenset[int]) -> None:
        """What was noted the driver has seen, unless its buffer is `unfinished`."""
        clock, head = self._kept.note >> 32, (self._kept.note & 0xFFFF_FFFF) - 1
        if head not in unfinished and self._kept.states[clock] == AlarmState.EXPIRED:
            self._kept.states[clock] = AlarmState.TOLD
        self._kept.note = 0

    def next(self) -> int | None:
        """Nanoseconds until the next may expire, by its clock; None: none is enabled.

        One that has expired is none: to go back is up to its clock, and may be at any time.
        """
        found = [
            max(0, self.time(clock) - self._now(clock))
            if self._kept.states[clock] == AlarmState.WAITING
            else 1 << 63
            for clock in range(self._count)
            if self.enabled(clock)
        ]
        return min(found, default=None)

    def _look_at(self, clock: int) -> None:
        if not self.enabled(clock):
            return
        if self._now(clock) < self.time(clock):
            # Also if it had expired: the clock has jumped back before the driver was told.
            self._kept.states[clock] = AlarmState.WAITING
        elif self._kept.states[clock] == AlarmState.WAITING:
            self._kept.states[clock] = AlarmState.EXPIRED
