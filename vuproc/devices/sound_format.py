"""What sound is made of: format, rate and channels, as a stream has them or could have them."""

from __future__ import annotations

from dataclasses import dataclass

from vuproc.spec.sound import MAX_CHANNELS, RATES, SAMPLE_BYTES, Position, SampleFormat

FORMATS = {"u8": "U8", "s16": "S16", "s24": "S24_3", "s32": "S32", "float": "FLOAT"}
"""Words of a device file -> members of SampleFormat."""
_FRONT = (Position.FL, Position.FR)
_REAR = (Position.RL, Position.RR)
_MIDDLE = (Position.FC, Position.LFE)
_LAYOUTS: dict[int, tuple[Position, ...]] = {
    1: (Position.MONO,),
    2: _FRONT,
    4: (*_FRONT, *_REAR),
    6: (*_FRONT, *_REAR, *_MIDDLE),
    8: (*_FRONT, *_REAR, *_MIDDLE, Position.SL, Position.SR),
}
"""Channels -> where each is heard, in ALSA's order."""


@dataclass(frozen=True, slots=True)
class Params:
    """What a stream's bytes mean."""

    format: SampleFormat
    rate: int
    """Frames a second."""
    channels: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of each channel."""
        return SAMPLE_BYTES[self.format] * self.channels

    @property
    def byte_rate(self) -> int:
        """Bytes a second."""
        return self.frame_bytes * self.rate

    def silence(self, count: int) -> bytes:
        """So many bytes of nothing to be heard."""
        return (b"\x80" if self.format is SampleFormat.U8 else b"\0") * count


@dataclass(frozen=True, slots=True)
class Ability:
    """What a stream can have, of which the driver chooses."""

    formats: frozenset[SampleFormat]
    rates: frozenset[int]
    channels_min: int
    channels_max: int

    def choose(self, format: int, rate: int, channels: int) -> Params | None:
        """The driver's choice, as SET_PARAMS has it; None if it cannot be had."""
        if format not in self.formats or rate >= len(RATES) or RATES[rate] not in self.rates:
            return None
        if not self.channels_min <= channels <= self.channels_max:
            return None
        return Params(SampleFormat(format), RATES[rate], channels)

    @property
    def format_bits(self) -> int:
        """`formats` of PCM_INFO."""
        return sum(1 << format for format in self.formats)

    @property
    def rate_bits(self) -> int:
        """`rates` of PCM_INFO."""
        return sum(1 << RATES.index(rate) for rate in self.rates)

    @property
    def positions(self) -> bytes:
        """`positions` of a channel map for all channels."""
        unknown = (Position.NA,) * self.channels_max
        return bytes(_LAYOUTS.get(self.channels_max, unknown)).ljust(MAX_CHANNELS, b"\0")
