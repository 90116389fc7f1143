"""A clock with a leap second at the end of 2026, ten seconds after the start. In a device file:

socket: ./leap.sock
device: {type: ./leap.py:Leap, epoch: 2026-12-31T23:59:50Z}
"""

from vuproc.devices.rtc import Rtc
from vuproc.spec.rtc import ClockType

S = 1_000_000_000
LEAP = 1_798_761_600 * S
"""The end of 2026, in nanoseconds since 1970."""


class Leap(Rtc):
    """virtio-rtc: shows 23:59:59 twice."""

    def now(self, clock: ClockType) -> int:
        """What a clock shows, in nanoseconds."""
        shown = super().now(clock)
        return shown - S if clock is ClockType.UTC and shown >= LEAP else shown
