"""Where the sound of a stream goes, or comes from.

`position` is the stream's own, a number of 32 bits that outlives workers: a back-end is told it and
says where it is afterwards, so that whoever follows a dead worker goes on there.
"""

from __future__ import annotations

import errno
import math
import os
import struct

from vuproc.devices import sound_wav
from vuproc.devices.sound_format import Ability, Params
from vuproc.fd import Fd
from vuproc.spec.sound import SampleFormat

LOUDNESS = 0.25
"""Of a tone: the loudest sample that there could be is 1."""
_SILENCE = Params(SampleFormat.S16, 48000, 1)


class Backend:
    """The base class: what is played is heard by nobody, what is recorded is silence."""

    params: Params = _SILENCE
    """What the driver has chosen, from `open` on."""

    @property
    def latency(self) -> int:
        """Bytes that it has and nobody has heard yet; of capture, that nobody has recorded yet."""
        return 0

    def open(self, params: Params) -> None:
        """Get ready for sound of this kind. Raise if that cannot be."""
        self.params = params

    def start(self) -> None:
        """The stream runs from now on. Raise if it cannot."""

    def stop(self) -> None:
        """It does not run any more."""

    def close(self) -> None:
        """There is nothing to come until `open` is called again; it may not have been called."""

    def wait(self, count: int) -> float | None:
        """Seconds until so many bytes may be played or recorded; None: the stream's own clock says
        so.
        """
        return None

    def play(self, position: int, data: bytes) -> int:
        """Take whole frames; the position behind them. Raise if they cannot be had."""
        return position

    def record(self, position: int, count: int) -> tuple[bytes, int]:
        """So many bytes, and the position behind them. Raise if there are none."""
        return self.params.silence(count), position


class Recording(Backend):
    """A WAV file of what the guest plays."""

    def __init__(self, file: Fd) -> None:
        self._file = file

    def play(self, position: int, data: bytes) -> int:
        """Write it where it belongs, however often that is done."""
        if position + len(data) > sound_wav.MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return sound_wav.record(self._file, self.params, position, data)


class Looped(Backend):
    """Sound of a certain length, which begins again at its end, or silence then."""

    repeat = True
    length = 0
    """Bytes that there are, from `open` on."""

    def read(self, at: int, count: int) -> bytes:
        """Bytes of the sound, at least one of these."""
        raise NotImplementedError(f"{type(self).__name__}.read")

    def record(self, position: int, count: int) -> tuple[bytes, int]:
        """The next ones."""
        came = bytearray()
        while len(came) < count and position < self.length:
            data = self.read(position, min(count - len(came), self.length - position))
            if not data:
                raise OSError(errno.ENODATA, "the file has become shorter")
            came += data
            position += len(data)
            if position == self.length and self.repeat:
                position = 0
                if len(data) == self.length:
                    # It was all of it: a short one would be read a million times otherwise.
                    came += data * ((count - len(came)) // self.length)
        came += self.params.silence(count - len(came))
        return bytes(came), position


class Tone(Looped):
    """A sine wave of so many Hz: one second of it."""

    def __init__(self, frequency: int) -> None:
        self._frequency = frequency
        self._second = b""

    def open(self, params: Params) -> None:
        """Reckon the second."""
        if self._second and params == self.params:
            return
        super().open(params)
        step = 2 * math.pi * self._frequency / params.rate
        self._second = b"".join(
            _sample(params.format, LOUDNESS * math.sin(step * number)) * params.channels
            for number in range(params.rate)
        )
        self.length = len(self._second)

    def record(self, position: int, count: int) -> tuple[bytes, int]:
        """The next bytes; a driver that has chosen anew begins within this second."""
        position %= self.length
        return super().record(position - position % self.params.frame_bytes, count)

    def read(self, at: int, count: int) -> bytes:
        """A part of it."""
        return self._second[at : at + count]


class Played(Looped):
    """A WAV file that the guest records."""

    def __init__(self, file: Fd, repeat: bool) -> None:
        self._file = file
        self.repeat = repeat
        self.sound = sound_wav.sound_in(file)

    @property
    def ability(self) -> Ability:
        """What the file is made of."""
        params = self.sound.params
        one = frozenset({params.format}), frozenset({params.rate})
        return Ability(*one, params.channels, params.channels)

    def open(self, params: Params) -> None:
        """Have all of it."""
        super().open(params)
        self.length = self.sound.length

    def read(self, at: int, count: int) -> bytes:
        """A part of it."""
        return os.pread(self._file.fileno(), count, self.sound.start + at)


def _sample(format: SampleFormat, value: float) -> bytes:
    """A sample, from -1 to 1."""
    match format:
        case SampleFormat.U8:
            return bytes([128 + round(127 * value)])
        case SampleFormat.S16:
            return struct.pack("<h", round(0x7FFF * value))
        case SampleFormat.S24_3:
            return round(0x7FFFFF * value).to_bytes(3, "little", signed=True)
        case SampleFormat.S32:
            return struct.pack("<i", round(0x7FFFFFFF * value))
    return struct.pack("<f", value)
