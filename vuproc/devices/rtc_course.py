"""How time passes for a real-time clock: with this machine, or on a course of its own."""

from __future__ import annotations

import ctypes
import time
from typing import ClassVar, NamedTuple

from vuproc.devices import rtc_smear

S = 1_000_000_000
"""Nanoseconds of a second."""
MOST_PASSED = 1 << 61
"""Nanoseconds between two machines: 73 years."""
NORMAL = 1_000_000_000
"""Nanoseconds that pass for the device in a second of this machine, without a slew."""


class _Anchor(ctypes.Structure):
    """A moment from which on the device's time passes evenly. All in nanoseconds."""

    _fields_: ClassVar = [
        ("boot", ctypes.c_int64),  # CLOCK_BOOTTIME of this machine then
        ("utc", ctypes.c_int64),  # the device's, before its offset
        ("monotonic", ctypes.c_int64),
        ("rate", ctypes.c_int64),  # nanoseconds a second
        ("own", ctypes.c_int64),  # whether `utc` counts, or this machine's clock does
    ]


class Kept(ctypes.Structure):
    """What outlives a worker: two anchors, and which of them holds."""

    _fields_: ClassVar = [("anchors", _Anchor * 2), ("current", ctypes.c_int64)]


class Left(NamedTuple):
    """Where a device's time was, all in nanoseconds."""

    at: int
    """This machine's clock then."""
    utc: int
    """The device's, before its offset."""
    monotonic: int
    own: bool
    """It goes by itself, whatever this machine's clock does."""


def begin(kept: Kept, epoch_ns: int | None, rate: int) -> None:
    """The device's time begins now, at `epoch_ns` after 1970 or at this machine's time."""
    first = kept.anchors[0]
    first.boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    first.utc = time.time_ns() if epoch_ns is None else epoch_ns
    first.rate = rate
    first.own = int(epoch_ns is not None or rate != NORMAL)


def system_tai_offset() -> int:
    """Seconds that TAI is ahead of UTC, as this machine's kernel knows it; 0: it does not."""
    return round((time.clock_gettime_ns(time.CLOCK_TAI) - time.time_ns()) / S)


class Course:
    """The time of one device. `offset` is in nanoseconds, `rate` in nanoseconds a second,
    `tai_offset` in seconds; None: this machine's.

    It follows this machine's clock, whoever sets that, until it has a rate or a beginning of its
    own; from then on it goes by itself.
    """

    def __init__(self, kept: Kept, *, offset: int, rate: int, tai_offset: int | None) -> None:
        self._kept = kept
        self._offset = offset
        self._tai_offset = tai_offset
        if self._anchor.rate != rate:
            self._turn(rate)

    @property
    def rate(self) -> int:
        """Nanoseconds that pass in a second of this machine."""
        return int(self._anchor.rate)

    def utc(self) -> int:
        """Nanoseconds since 1970, UTC."""
        return self._without_offset() + self._offset

    def smeared(self) -> int:
        """Nanoseconds since 1970, UTC without steps. A time of its own has no leap seconds."""
        return self.utc() if self._anchor.own else rtc_smear.now() + self._offset

    def tai(self) -> int:
        """Nanoseconds since 1970, TAI."""
        if self._tai_offset is not None:
            return self.utc() + self._tai_offset * S
        if self._anchor.own:
            return self.utc() + system_tai_offset() * S
        # In a leap second the kernel's is right, and UTC and a number are not.
        return time.clock_gettime_ns(time.CLOCK_TAI) + self._offset

    def monotonic(self) -> int:
        """Nanoseconds since the device was there first. Never less than before."""
        return int(self._anchor.monotonic) + self._elapsed()

    @property
    def _anchor(self) -> _Anchor:
        anchor: _Anchor = self._kept.anchors[self._kept.current & 1]
        return anchor

    def _elapsed(self) -> int:
        """For the device, since its anchor. In whole numbers, so that it never goes back."""
        anchor = self._anchor
        passed = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - anchor.boot
        return int(max(0, passed) * anchor.rate // NORMAL)

    def _without_offset(self) -> int:
        anchor = self._anchor
        return anchor.utc + self._elapsed() if anchor.own else time.time_ns()

    def left(self) -> Left:
        """Where it is, for whoever goes on from here elsewhere."""
        own = bool(self._anchor.own)
        return Left(time.time_ns(), self._without_offset(), self.monotonic(), own)

    def go_on(self, left: Left) -> None:
        """As from where another was, who left it so long ago by this machine's clock."""
        passed = max(0, time.time_ns() - left.at) * self.rate // NORMAL
        passed = min(passed, MOST_PASSED)
        self._begin_at(left.utc + passed, left.monotonic + passed, self.rate, left.own)

    def _turn(self, rate: int) -> None:
        """Go on from here at another rate, without a step."""
        self._begin_at(self._without_offset(), self.monotonic(), rate, True)

    def _begin_at(self, utc: int, monotonic: int, rate: int, own: bool) -> None:
        other = self._kept.anchors[1 - (self._kept.current & 1)]
        other.utc = utc
        other.monotonic = monotonic
        other.boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        other.rate = rate
        other.own = int(own)
        # The store that decides: a death before it leaves the old course.
        self._kept.current = 1 - (self._kept.current & 1)
