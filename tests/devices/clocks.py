"""Clocks that go as a test wants them to."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from vuproc import FilePath
from vuproc.devices.rtc import ALARM, Rtc
from vuproc.devices.rtc_alarms import AlarmState
from vuproc.devices.rtc_options import RtcOptions
from vuproc.spec.rtc import ClockType


class ToldOptions(RtcOptions, kw_only=True):
    """Where the time comes from."""

    told: Annotated[FilePath, Meta(description="Holds the time, in nanoseconds.")]


class Told(Rtc):
    """Its time of day is what a file says."""

    options_type = ToldOptions
    options: ToldOptions

    def now(self, clock: ClockType) -> int:
        if clock is ClockType.MONOTONIC:
            return super().now(clock)
        return int(Path(self.options.told).read_text())


class MortalOptions(RtcOptions, kw_only=True):
    """When to die."""

    wish: Annotated[FilePath, Meta(description="Says finished, published or told.")]


class Mortal(Rtc):
    """Its worker dies while it tells of an alarm of the second clock, where a file says."""

    options_type = MortalOptions
    options: MortalOptions

    def publish(self, queue: int) -> None:
        self._die("finished")
        super().publish(queue)
        self._die("published")

    def available(self, queue: int) -> None:
        super().available(queue)
        if queue == ALARM and self._alarms._kept.states[1] == AlarmState.TOLD:
            self._die("told")

    def _die(self, when: str) -> None:
        wish = Path(self.options.wish)
        if wish.exists() and wish.read_text() == when:
            wish.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
