"""The options of a real-time clock: which clocks there are, and what they show."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from vuproc.devices.rtc_alarms import MAX_CLOCKS
from vuproc.devices.rtc_course import NORMAL, S, system_tai_offset
from vuproc.options import Options

MOST_OFFSET = 10_000_000_000
"""Seconds of the largest offset either way, about 317 years."""
MOST_SLEW = 1_000_000_000
"""Parts per million: 1001 times as fast."""
MAX_EPOCH = 4_102_444_800
"""Seconds from 1970 to 2100."""


class RtcOptions(Options, kw_only=True):
    """The options of `type: rtc`."""

    live: ClassVar[frozenset[str]] = Options.live | {"offset", "slew"}

    clocks: Annotated[
        tuple[Literal["utc", "tai", "monotonic", "smeared"], ...],
        Meta(
            min_length=1,
            max_length=MAX_CLOCKS,
            description="The clocks that the driver finds, in this order. utc: the time of day. "
            "tai: the same without leap seconds. monotonic: since the device was there first. "
            "smeared: utc with leap seconds spread over 1000 s; Linux makes /dev/rtc of it alone.",
        ),
    ] = ("utc", "monotonic")
    offset: Annotated[
        float,
        Meta(
            ge=-MOST_OFFSET,
            le=MOST_OFFSET,
            description="Seconds by which utc, smeared and tai are ahead of what they would show "
            "without.",
        ),
    ] = 0.0
    slew: Annotated[
        float,
        Meta(
            ge=-1_000_000,
            le=MOST_SLEW,
            description="By how much all clocks are too fast, in millionths: 1000000 is twice as "
            "fast, -1000000 at a standstill.",
        ),
    ] = 0.0
    epoch: (
        Annotated[
            Annotated[int, Meta(ge=0, le=MAX_EPOCH)] | str,
            Meta(
                description="What utc shows when vuproc starts: a time such as "
                "2038-01-19T03:14:00Z, in UTC if it names no zone, or seconds since 1970. Without "
                "it utc is this machine's."
            ),
        ]
        | None
    ) = None
    tai_offset: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=3600,
                description="Seconds that tai is ahead of utc; without it, what this machine's "
                "kernel was told.",
            ),
        ]
        | None
    ) = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that each clock is there once, and that its time is known."""
        yield from super().problems()
        if len(set(self.clocks)) < len(self.clocks):
            yield "clocks", "each clock at most once"
        if "tai" in self.clocks and self.tai_offset is None and not system_tai_offset():
            yield "clocks", "this machine's TAI offset is not set; set tai_offset for tai"
        try:
            self.epoch_ns()
        except ValueError as error:
            yield "epoch", str(error)

    def epoch_ns(self) -> int | None:
        """`epoch` in nanoseconds since 1970, or None. Raises ValueError."""
        if self.epoch is None:
            return None
        if isinstance(self.epoch, int):
            return self.epoch * S
        try:
            when = datetime.fromisoformat(self.epoch)
        except ValueError:
            raise ValueError(f"no time such as 2038-01-19T03:14:00Z: {self.epoch!r}") from None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        since = when - datetime.fromtimestamp(0, UTC)
        if not 0 <= since.total_seconds() <= MAX_EPOCH:
            raise ValueError(f"{self.epoch} is not between 1970 and 2100")
        return (since.days * 86_400 + since.seconds) * S + since.microseconds * 1000

    def rate(self) -> int:
        """Nanoseconds of the device that pass in a second."""
        return NORMAL + round(self.slew * 1000)
