"""What of a real-time clock goes along in a migration: its time, and what its alarms are set to."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vuproc.devices.rtc_alarms import Alarms, AlarmState
from vuproc.devices.rtc_course import Course, Left
from vuproc.spec.rtc import ClockType

_HEAD = struct.Struct("<BB6xqqq")
"""Clocks; whether time goes by itself; the sender's own clock, utc and monotonic, in ns."""
_MOST = 1 << 62
"""Nanoseconds that make sense: 146 years."""
_CLOCK = struct.Struct("<BB6xQ")
"""Its type, and the state and time (ns) of its alarm."""


def pack(clocks: Sequence[ClockType], course: Course, alarms: Alarms) -> bytes:
    """The state as it is now."""
    left = course.left()
    parts = [_HEAD.pack(len(clocks), left.own, left.at, left.utc, left.monotonic)]
    for number, kind in enumerate(clocks):
        parts.append(_CLOCK.pack(kind, alarms.state(number), alarms.time(number)))
    return b"".join(parts)


def unpack(data: bytes, clocks: Sequence[ClockType], course: Course, alarms: Alarms) -> None:
    """Go on from a state of a device with the same clocks. Raises ValueError, with nothing done."""
    if len(data) != _HEAD.size + len(clocks) * _CLOCK.size:
        raise ValueError("it is that of a device with other clocks")
    count, own, at, utc, monotonic = _HEAD.unpack_from(data)
    settings = list(_CLOCK.iter_unpack(data[_HEAD.size :]))
    if count != len(clocks) or [kind for kind, _, _ in settings] != list(clocks):
        raise ValueError("it is that of a device with other clocks")
    if not (0 <= at < _MOST and -_MOST < utc < _MOST and 0 <= monotonic < _MOST):
        raise ValueError("its time makes no sense")
    states = [AlarmState(state) for _, state, _ in settings]
    course.go_on(Left(at, utc, monotonic, bool(own)))
    for number, (_, _, when) in enumerate(settings):
        alarms.restore(number, when, states[number])
