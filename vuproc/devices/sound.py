"""virtio-sound: streams that the guest plays to and records from."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from vuproc import shared
from vuproc.device import Device
from vuproc.devices.sound_backend import Backend, Played, Recording, Tone
from vuproc.devices.sound_card import Card, card_needs
from vuproc.devices.sound_control import Control
from vuproc.devices.sound_format import Params
from vuproc.devices.sound_options import (
    CaptureOptions,
    PlaybackOptions,
    SoundOptions,
    StreamOptions,
    ability,
)
from vuproc.devices.sound_state import StreamState
from vuproc.devices.sound_stream import STATUS_BYTES, Stream, answer
from vuproc.devices.sound_wav import played_file, recorded_file
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.options import Options
from vuproc.sandbox.needs import Needs
from vuproc.spec.sound import (
    CONFIG,
    CONTROL,
    EVENT,
    QUEUES,
    RECEIVE,
    TRANSFER,
    TRANSMIT,
    SoundStatus,
)

if TYPE_CHECKING:
    from vuproc.shm.request import Request


class Sound(Device):
    """virtio-sound: streams that the guest plays to and records from.

    Queue 0 is for control, 1 for events, of which there are none, 2 for what is played and 3 for
    what is recorded (virtio 1.3, 5.14.2). One worker serves all of them. A subclass hears what is
    played, and says what is recorded: `played`, `captured`.
    """

    device_id = 25
    queues = QUEUES
    options_type: ClassVar[type[Options]] = SoundOptions
    options: SoundOptions

    def __init__(self, options: SoundOptions | None = None) -> None:
        super().__init__(options)
        self._streams: list[Stream] = []
        self._rings: set[int] = set()
        self._unsettled: set[int] = set()
        self._again: set[int] = set()
        """Control requests that a worker which died may have carried out."""

    # For a subclass, in the worker.

    def played(self, stream: int, pcm: bytes) -> None:
        """The guest has played whole frames on a stream, by its number: those of `playback` come
        first. What was sent when a worker died may be heard a second time.
        """

    def captured(self, stream: int, count: int) -> bytes | None:
        """So many bytes that the guest records; if there are fewer, silence follows. None: what the
        back-end has.
        """
        return None

    def params(self, stream: int) -> Params | None:
        """What the guest has chosen for a stream: format, rate, channels; None if nothing yet."""
        return self._streams[stream].params

    # What the master asks.

    def queue_groups(self) -> list[tuple[int, ...]]:
        """One worker has all streams."""
        return [tuple(range(QUEUES))]

    def config_space(self) -> bytes:
        """virtio 1.3, 5.14.4: each stream has a jack and a channel map."""
        count = len(self.options.all_streams())
        return CONFIG.pack(jacks=count, streams=count, chmaps=count)

    def sandbox_needs(self) -> Needs:
        """The sound card, or the user's sound server; files are open already."""
        if not any(stream.backend == "card" for _, stream in self.options.all_streams()):
            return self.needs
        return self.needs.with_more(card_needs())

    def follows_at_once(self) -> bool:
        """Files are shared; a sound card is opened by each worker."""
        return type(self) is Sound and not any(
            stream.backend == "card" for _, stream in self.options.all_streams()
        )

    def shared_files(self) -> dict[str, Fd]:
        """The streams' state, and their files, opened once."""
        recorded = set()
        with shared.gathering() as files:
            files[self._named("state")] = shared.struct_file(self._state_type())
            state = shared.struct(self._state_type(), files[self._named("state")])
            for number, (option, stream) in enumerate(self.options.all_streams()):
                if stream.path is None:
                    continue
                if isinstance(stream, CaptureOptions):
                    files[self._named(f"wav{number}")] = played_file(stream.path, option)
                    continue
                file, length = recorded_file(stream.path, _only(stream), option)
                files[self._named(f"wav{number}")] = file
                there = os.fstat(file.fileno())
                if (there.st_dev, there.st_ino) in recorded:  # by another path
                    raise FileRefused(option, f"{stream.path} is another stream's")
                recorded.add((there.st_dev, there.st_ino))
                state.streams[number].position = length
        return files

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """Those of the same streams, which say in their names whose they are."""
        return self._named("state") in left

    def replaced_files(self) -> Iterator[tuple[str, str]]:
        """Files that are elsewhere by now, as a recording that was moved away."""
        for number, (option, stream) in enumerate(self.options.all_streams()):
            if stream.path is None:
                continue
            try:
                if not shared.is_at(stream.path, self.shared[self._named(f"wav{number}")]):
                    yield option, f"another file is at {stream.path} now"
            except OSError:
                yield option, f"{stream.path} is gone"

    def _state_type(self) -> type[ctypes.Structure]:
        streams = StreamState * len(self.options.all_streams())
        return type("SoundState", (ctypes.Structure,), {"_fields_": [("streams", streams)]})

    def _named(self, what: str) -> str:
        return shared.named(what, self.options.all_streams())

    # What a worker calls.

    def setup(self, queue: int) -> None:
        """Make the streams, once."""
        if queue != CONTROL:
            return
        self._state = shared.struct(self._state_type(), self.shared[self._named("state")])
        for number, (_, stream) in enumerate(self.options.all_streams()):
            plays = isinstance(stream, PlaybackOptions)
            backend = self.make_backend(number, stream)
            self._streams.append(
                Stream(
                    self,
                    number,
                    # What is played and what is recorded with the same number are one PCM device
                    # of Linux.
                    function=number if plays else number - len(self.options.playback),
                    queue=TRANSMIT if plays else RECEIVE,
                    plays=plays,
                    ability=backend.ability if isinstance(backend, Played) else ability(stream),
                    backend=backend,
                    state=self._state.streams[number],
                )
            )
        self._control = Control(self._streams, lambda stream: self._fetch(stream.queue))

    def make_backend(self, number: int, stream: StreamOptions) -> Backend:
        """The outside of a stream."""
        file = self.shared.get(self._named(f"wav{number}"))
        if isinstance(stream, CaptureOptions):
            if stream.backend == "tone":
                return Tone(stream.frequency)
            if file is not None:
                return Played(file, stream.repeat)
        elif file is not None:
            return Recording(file)
        if stream.backend == "card":
            return Card(stream.card, plays=isinstance(stream, PlaybackOptions))
        return Backend()

    def teardown(self) -> None:
        """Let go of the back-ends."""
        for stream in self._streams:
            stream.close()

    def pulls(self, queue: int) -> bool:
        """All of them: events stay with the driver, and the others are asked what was seen."""
        return True

    def reset(self) -> None:
        """No stream has anything chosen any more."""
        for stream in self._streams:
            stream.forget()

    def ring_started(self, queue: int) -> None:
        """Look first what of the last ring's counts."""
        self._rings.add(queue)
        self._unsettled.add(queue)

    def ring_stopping(self, queue: int) -> None:
        """Give back what waits for its time."""
        for stream in self._streams:
            if stream.queue == queue:
                stream.give_back()

    def ring_stopped(self, queue: int) -> None:
        """There is none any more."""
        self._rings.discard(queue)

    def available(self, queue: int) -> None:
        """Control first: a stream is prepared before its transfers come."""
        if queue == EVENT:
            return
        while (request := self._taken(CONTROL)) is not None:
            again = request.head in self._again
            self._again.discard(request.head)
            self._control.heard(request, again)
            # One at a time: with two that the driver has not seen, the first would not fit the
            # state any more when it is carried out again.
            self.publish(CONTROL)
        if queue != CONTROL:
            self._fetch(queue)
            for stream in self._streams:
                if stream.queue == queue:
                    stream.go_on()

    def _fetch(self, queue: int) -> None:
        """Give each stream its transfers."""
        while (request := self._taken(queue)) is not None:
            head = request.read(TRANSFER.size)
            number = int.from_bytes(head, "little")
            if len(head) == TRANSFER.size and number < len(self._streams):
                stream = self._streams[number]
                count = request.readable if stream.plays else request.writable - STATUS_BYTES
                room = request.writable >= STATUS_BYTES
                if stream.queue == queue and room and stream.add(request, count):
                    continue
            answer(request, SoundStatus.BAD_MSG)

    def _taken(self, queue: int) -> Request | None:
        if queue not in self._rings:
            return None
        if queue in self._unsettled:
            unfinished = self.unfinished(queue)
            if unfinished is None:
                return None
            self._unsettled.discard(queue)
            if queue == CONTROL:
                self._again = set(unfinished)
            old = set(unfinished)
            for stream in self._streams:
                if stream.queue == queue:
                    stream.settle(old)
        return self.take(queue)


def _only(stream: PlaybackOptions) -> Params:
    """What a recording is made of."""
    (format,), (rate,) = ability(stream).formats, ability(stream).rates
    return Params(format, rate, stream.channels)
