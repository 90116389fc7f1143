"""What the driver asks of a sound device on its control queue (virtio 1.3, 5.14.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vuproc.devices.sound_state import COMMANDS
from vuproc.devices.sound_stream import Stream
from vuproc.spec.layout import Layout, LayoutError
from vuproc.spec.sound import (
    CHMAP_INFO,
    CONNECTED_INPUT,
    CONNECTED_OUTPUT,
    HEADER,
    INPUT,
    JACK_INFO,
    OUTPUT,
    PCM_HEADER,
    PCM_INFO,
    PCM_SET_PARAMS,
    QUERY_INFO,
    SoundRequest,
    SoundStatus,
)

if TYPE_CHECKING:
    from vuproc.shm.request import Request

MOST_REQUEST = PCM_SET_PARAMS.size
"""Bytes of the longest request; what is behind them counts for nothing."""
MOST_ENTRY = 256
"""Bytes that a driver may have each jack, stream or map told in: ours are 32 at most, and one of a
later version may know of more.
"""


class Control:
    """Answers the requests of the control queue. `fetch` has a stream take all transfers that its
    queue has.
    """

    def __init__(self, streams: Sequence[Stream], fetch: Callable[[Stream], None]) -> None:
        self._streams = streams
        self._fetch = fetch
        self._infos: dict[int, list[bytes]] = {
            SoundRequest.JACK_INFO: [_jack(stream) for stream in streams],
            SoundRequest.PCM_INFO: [_pcm(stream) for stream in streams],
            SoundRequest.CHMAP_INFO: [_map(stream) for stream in streams],
        }

    def heard(self, request: Request, again: bool) -> None:
        """Do what a request asks for, and complete it. `again`: as in `Stream.command`."""
        data = request.read(MOST_REQUEST)
        try:
            answer = self._answer(data, request.writable, again)
        except LayoutError:
            answer = _status(SoundStatus.BAD_MSG)  # too short
        if request.writable >= len(answer):
            request.write(answer)
        request.finish()

    def _answer(self, data: bytes, room: int, again: bool) -> bytes:
        code = HEADER.unpack(data)["code"]
        if code in self._infos:
            return self._told(self._infos[code], data, room)
        if code == SoundRequest.PCM_SET_PARAMS:
            return _status(self._set_params(data))
        if code not in COMMANDS:
            return _status(SoundStatus.NOT_SUPP)
        stream = self._stream(data, PCM_HEADER)
        if stream is None:
            return _status(SoundStatus.BAD_MSG)
        if code == SoundRequest.PCM_RELEASE:
            self._fetch(stream)
        return _status(stream.command(SoundRequest(code), again))

    def _told(self, entries: list[bytes], data: bytes, room: int) -> bytes:
        query = QUERY_INFO.unpack(data)
        start, count, size = query["start_id"], query["count"], query["size"]
        if start + count > len(entries) or size > MOST_ENTRY or HEADER.size + count * size > room:
            return _status(SoundStatus.BAD_MSG)
        chosen = entries[start : start + count]
        return _status(SoundStatus.OK) + b"".join(
            entry[:size].ljust(size, b"\0") for entry in chosen
        )

    def _stream(self, data: bytes, layout: Layout) -> Stream | None:
        number = layout.unpack(data)["stream_id"]
        return self._streams[number] if number < len(self._streams) else None

    def _set_params(self, data: bytes) -> SoundStatus:
        """5.14.6.6.3."""
        wanted = PCM_SET_PARAMS.unpack(data)
        stream = self._stream(data, PCM_SET_PARAMS)
        buffer, period = wanted["buffer_bytes"], wanted["period_bytes"]
        if stream is None or not period or not buffer or buffer % period:
            return SoundStatus.BAD_MSG
        format, rate, channels = wanted["format"], wanted["rate"], wanted["channels"]
        params = stream.ability.choose(format, rate, channels)
        if wanted["features"] or params is None:
            return SoundStatus.NOT_SUPP
        if period % params.frame_bytes:
            return SoundStatus.BAD_MSG
        self._fetch(stream)
        stream.choose(format, rate, channels)
        return SoundStatus.OK


def _status(status: SoundStatus) -> bytes:
    return HEADER.pack(code=status)


def _direction(stream: Stream) -> int:
    return OUTPUT if stream.plays else INPUT


def _jack(stream: Stream) -> bytes:
    """Each stream has one, and something is always plugged in."""
    config = CONNECTED_OUTPUT if stream.plays else CONNECTED_INPUT
    return JACK_INFO.pack(hda_fn_nid=stream.function, hda_reg_defconf=config, connected=1)


def _pcm(stream: Stream) -> bytes:
    ability = stream.ability
    return PCM_INFO.pack(
        hda_fn_nid=stream.function,
        formats=ability.format_bits,
        rates=ability.rate_bits,
        direction=_direction(stream),
        channels_min=ability.channels_min,
        channels_max=ability.channels_max,
    )


def _map(stream: Stream) -> bytes:
    ability = stream.ability
    return CHMAP_INFO.pack(
        hda_fn_nid=stream.function,
        direction=_direction(stream),
        channels=ability.channels_max,
        positions=ability.positions,
    )
