"""The options of a sound device."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from vuproc.devices.host_paths import why_not_made
from vuproc.devices.sound_format import FORMATS, Ability
from vuproc.devices.sound_wav import played_file
from vuproc.errors import FileRefused
from vuproc.options import FilePath, Options
from vuproc.spec.sound import MAX_CHANNELS, RATES, SampleFormat

MOST_STREAMS = 8
"""Streams of a direction: each has a file and a timer in the worker."""
CARD_MODULE = "sounddevice"
FormatName = Literal["u8", "s16", "s24", "s32", "float"]
Formats = Annotated[tuple[FormatName, ...], Meta(min_length=1)]
Rates = Annotated[tuple[int, ...], Meta(min_length=1)]
Channels = Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]


class PlaybackOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One stream that the guest plays to."""

    backend: Literal["null", "wav", "card"] = "null"
    path: FilePath | None = None
    card: str | None = None
    formats: Formats = ("s16",)
    rates: Rates = (48000,)
    channels: Channels = 2


class CaptureOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One stream that the guest records from."""

    backend: Literal["null", "tone", "wav", "card"] = "null"
    path: FilePath | None = None
    card: str | None = None
    repeat: bool = True
    frequency: Annotated[int, Meta(ge=1, le=20_000)] = 440
    formats: Formats = ("s16",)
    rates: Rates = (48000,)
    channels: Channels = 2


StreamOptions = PlaybackOptions | CaptureOptions


class SoundOptions(Options, kw_only=True):
    """The options of `type: sound`."""

    playback: Annotated[
        tuple[PlaybackOptions, ...],
        Meta(
            max_length=MOST_STREAMS,
            description="Streams that the guest plays to, each a mapping of backend (null; wav, "
            "recorded in the file path; card, the host's, by its name card or the usual one), "
            "formats (s16; u8, s24, s32, float), rates (48000; frames a second) and channels (2; "
            "so many at most, with wav just so many). Without any stream there is one, null.",
        ),
    ] = ()
    capture: Annotated[
        tuple[CaptureOptions, ...],
        Meta(
            max_length=MOST_STREAMS,
            description="Streams that the guest records from, the same with backend null "
            "(silence), tone (of frequency, 440 Hz), wav (of the file path, which says format, "
            "rate and channels, too, and is begun again at its end if repeat, true, says so) or "
            "card.",
        ),
    ] = ()

    def all_streams(self) -> list[tuple[str, StreamOptions]]:
        """Every stream by its number, and the option that it stands in."""
        playback = self.playback
        if not playback and not self.capture:
            playback = (PlaybackOptions(),)
        return [
            *(("playback", stream) for stream in playback),
            *(("capture", stream) for stream in self.capture),
        ]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Check that each back-end can be had, and each file belongs to one stream."""
        yield from super().problems()
        recorded = set()
        for option, stream in self.all_streams():
            for message in _problems(stream):
                yield option, message
            if isinstance(stream, PlaybackOptions) and stream.path is not None:
                if stream.path in recorded:
                    yield option, f"{stream.path} is another stream's"
                recorded.add(stream.path)


def _problems(stream: StreamOptions) -> Iterator[str]:
    for rate in stream.rates:
        if rate not in RATES:
            yield f"no rate of virtio: {rate}; there are {', '.join(map(str, RATES))}"
    if (stream.backend == "wav") != (stream.path is not None):
        yield "wav needs a path" if stream.path is None else f"{stream.backend} has no path"
    if stream.card is not None and stream.backend != "card":
        yield f"{stream.backend} has no card"
    if stream.backend == "card" and importlib.util.find_spec(CARD_MODULE) is None:
        yield f"card needs {CARD_MODULE}, which is not installed: pip install 'vuproc[sound]'"
    if isinstance(stream, CaptureOptions) and 2 * stream.frequency > min(stream.rates):
        yield f"a tone of {stream.frequency} Hz needs a rate of {2 * stream.frequency} at least"
    if stream.backend != "wav" or stream.path is None:
        return
    if isinstance(stream, CaptureOptions):
        try:
            played_file(stream.path, "capture").close()
        except FileRefused as error:
            yield error.reason
        return
    if len(stream.formats) != 1 or len(stream.rates) != 1:
        yield "a recording has one format and one rate"
    if problem := why_not_made(stream.path):
        yield problem


def ability(stream: StreamOptions) -> Ability:
    """What a stream can do, as its options say."""
    formats = frozenset(SampleFormat[FORMATS[name]] for name in stream.formats)
    least = stream.channels if stream.backend == "wav" else 1
    return Ability(formats, frozenset(stream.rates), least, stream.channels)
