"""Sound in files that most programs play (RIFF WAVE)."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from vuproc.devices.sound_format import Params
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.spec.sound import MAX_CHANNELS, RATES, SAMPLE_BYTES, SampleFormat

HEADER_BYTES = 44
"""Bytes before the sound in a file of ours."""
MOST_BYTES = (1 << 32) - 1 - HEADER_BYTES
"""Bytes of sound in a file: its lengths have 32 bits."""
MOST_CHUNKS = 64
"""Chunks before the sound that are looked at: a file may have names, pictures and marks there."""
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_FORMAT = struct.Struct("<HHIIHH")
_INTEGERS, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
"""Format tags of Microsoft's mmreg.h."""
_SUBFORMAT_AT = 24
_KINDS: dict[tuple[int, int], SampleFormat] = {
    (_INTEGERS, 8): SampleFormat.U8,
    (_INTEGERS, 16): SampleFormat.S16,
    (_INTEGERS, 24): SampleFormat.S24_3,
    (_INTEGERS, 32): SampleFormat.S32,
    (_FLOAT, 32): SampleFormat.FLOAT,
}


class Sound(NamedTuple):
    """What is in a file: what its bytes mean, and where they are."""

    params: Params
    start: int
    length: int


def header(params: Params, length: int) -> bytes:
    """The head of a file with so many bytes of sound, and one more if they are odd."""
    tag = _FLOAT if params.format is SampleFormat.FLOAT else _INTEGERS
    return _HEADER.pack(
        b"RIFF",
        HEADER_BYTES - 8 + length + length % 2,
        b"WAVE",
        b"fmt ",
        _FORMAT.size,
        tag,
        params.channels,
        params.rate,
        params.byte_rate,
        params.frame_bytes,
        8 * SAMPLE_BYTES[params.format],
        b"data",
        length,
    )


def recorded_file(path: str, params: Params, option: str) -> tuple[Fd, int]:
    """A file to record in, and the bytes of sound that it has: a new one gets its header, an old
    one is gone on with.

    Raises FileRefused, of `option`, for one with something else in it.
    """
    file = _opened(path, os.O_RDWR | os.O_CREAT, option)
    try:
        there = os.pread(file.fileno(), HEADER_BYTES, 0)
        if not there:
            os.pwrite(file.fileno(), header(params, 0), 0)
            return file, 0
        length = int.from_bytes(there[-4:], "little")
        if len(there) < HEADER_BYTES or header(params, min(length, MOST_BYTES)) != there:
            raise FileRefused(option, f"{path}: there is something else in it")
        # The host may have died before the last bytes were there whole.
        length = min(length, file.size - HEADER_BYTES)
        length -= length % params.frame_bytes
        if header(params, length) != there:
            os.pwrite(file.fileno(), header(params, length), 0)
        return file, length
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise FileRefused(option, f"{path}: {error.strerror}") from error
        raise


def record(file: Fd, params: Params, position: int, data: bytes) -> int:
    """Put bytes of sound at a position, and say in the header that they are there; the position
    behind them. Done again it changes nothing. Raises OSError.
    """
    end = position + len(data)
    view, at = memoryview(data + b"\0" if end % 2 else data), HEADER_BYTES + position
    while view:
        count = os.pwrite(file.fileno(), view, at)
        view, at = view[count:], at + count
    os.pwrite(file.fileno(), header(params, end), 0)
    return end


def played_file(path: str, option: str) -> Fd:
    """A file with sound. Raises FileRefused, of `option`, if it is none."""
    file = _opened(path, os.O_RDONLY, option)
    try:
        sound_in(file)
    except (OSError, ValueError) as error:
        file.close()
        raise FileRefused(option, f"{path}: {error}") from error
    return file


def sound_in(file: Fd) -> Sound:
    """What is in a file. Raises ValueError if nobody could play it, OSError."""
    form = os.pread(file.fileno(), 12, 0)
    if form[:4] != b"RIFF" or form[8:] != b"WAVE":
        raise ValueError("no WAV file")
    params: Params | None = None
    for name, start, length in _chunks(file):
        if name == b"fmt ":
            params = _params(os.pread(file.fileno(), min(length, 40), start))
        elif name == b"data":
            if params is None:
                break
            length -= length % params.frame_bytes
            if not length:
                raise ValueError("there is no sound in it")
            return Sound(params, start, length)
    raise ValueError("a WAV file without format or sound")


def _chunks(file: Fd) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and length of each chunk, as far as the file goes."""
    at, size = 12, file.size
    for _ in range(MOST_CHUNKS):
        head = os.pread(file.fileno(), 8, at)
        if len(head) < 8:
            return
        length = int.from_bytes(head[4:], "little")
        yield head[:4], at + 8, min(length, size - at - 8)
        at += 8 + length + length % 2


def _params(chunk: bytes) -> Params:
    if len(chunk) < _FORMAT.size:
        raise ValueError("a WAV file with half a format")
    tag, channels, rate, _, frame_bytes, bits = _FORMAT.unpack_from(chunk)
    if tag == _EXTENSIBLE:
        tag = int.from_bytes(chunk[_SUBFORMAT_AT : _SUBFORMAT_AT + 2], "little")
    format = _KINDS.get((tag, bits))
    if format is None:
        raise ValueError(
            f"samples of {bits} bits, kind {tag}: neither integers of 8 to 32 nor floats of 32"
        )
    if rate not in RATES:
        raise ValueError(f"{rate} frames a second: there are {', '.join(map(str, RATES))}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"{channels} channels: there may be 1 to {MAX_CHANNELS}")
    params = Params(format, rate, channels)
    if frame_bytes != params.frame_bytes:
        raise ValueError("its frames have another size than its samples")
    return params


def _opened(path: str, flags: int, option: str) -> Fd:
    try:
        file = Fd(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))
    except OSError as error:
        raise FileRefused(option, f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileRefused(option, f"{path}: not a regular file")
    return file
