"""A time of day without steps: a leap second is spread over the end of its day, as UTC-SLS does it
(M. Kuhn, "Coordinated Universal Time with Smoothed Leap Seconds").
"""

from __future__ import annotations

import ctypes
import os
from enum import IntEnum
from typing import ClassVar

S = 1_000_000_000
DAY = 86_400 * S
SPREAD = 1000 * S
"""Nanoseconds at the end of a day over which its leap second is spread."""
_NANOSECONDS = 0x2000
"""Bit of `status`: the kernel tells nanoseconds, and no microseconds (STA_NANO)."""


class Leap(IntEnum):
    """What the kernel knows of a leap second at the end of this day (adjtimex(2))."""

    NONE = 0
    INSERTED = 1
    DELETED = 2
    UNDER_WAY = 3
    """The last second of the day is shown a second time."""


class _Timex(ctypes.Structure):
    """struct timex."""

    _fields_: ClassVar = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("fraction", ctypes.c_long),
        ("others", ctypes.c_long * 12),
        ("room", ctypes.c_int * 11),
    ]


_libc = ctypes.CDLL(None, use_errno=True)


def now() -> int:
    """This machine's time of day in nanoseconds since 1970, smeared. Raises OSError."""
    told = _Timex()
    state = _libc.adjtimex(ctypes.byref(told))
    if state < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    fraction = told.fraction if told.status & _NANOSECONDS else told.fraction * 1000
    leap = Leap(state) if state <= Leap.UNDER_WAY else Leap.NONE
    return smeared(told.seconds * S + fraction, leap)


def smeared(utc: int, leap: Leap) -> int:
    """What UTC-SLS shows when UTC, as the kernel tells it, is so many nanoseconds after 1970."""
    if leap is Leap.NONE:
        return utc
    length = -S if leap is Leap.DELETED else S
    begin = utc - utc % DAY + DAY + length - SPREAD
    passed = utc - begin + (S if leap is Leap.UNDER_WAY else 0)
    return utc if passed <= 0 else begin + passed * (SPREAD - length) // SPREAD
