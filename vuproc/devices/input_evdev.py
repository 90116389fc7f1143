"""An input device of the host, by Linux's evdev: its description, its events, its lights.

By the kernel's own calls rather than a library's device, which opens the file itself: what was
grabbed, and what has not been read, belongs to the open file, which has to outlive workers.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator

from vuproc.devices.input_backlog import packed
from vuproc.devices.input_kind import Axis, Kind
from vuproc.devices.input_source import REPORT
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.spec.input import SYN_DROPPED, SYN_REPORT, InputType

INPUT_EVENT = struct.Struct("@llHHi")
"""input_event of Linux (input.h): a time, type, code, value."""
INPUT_ID = struct.Struct("@HHHH")
ABS_INFO = struct.Struct("@iiiiii")
"""input_absinfo: the value, then minimum, maximum, fuzz, flat, resolution."""
READ, WRITE = 2, 1
"""Directions of an ioctl's number."""
GID, GNAME, GUNIQ, GPROP, GKEY, GBIT, GABS, GRAB = 0x02, 0x06, 0x08, 0x09, 0x18, 0x20, 0x40, 0x90
"""The EVIOC calls: GBIT and GABS count on from here, by type and axis."""
MOST_CODES = 0x300
"""Of one type (KEY_MAX of Linux and one)."""
TEXT_BYTES = 256
PASSED_ON = (
    InputType.KEY,
    InputType.REL,
    InputType.ABS,
    InputType.MSC,
    InputType.SW,
    InputType.LED,
    InputType.SND,
)
"""Types of events that the driver is told of. REP is not: the host repeats keys already."""
TAKEN = (InputType.LED, InputType.SND)
"""Those that the driver may send to the host's device."""


def number(direction: int, call: int, size: int) -> int:
    """An ioctl of evdev, as _IOC of Linux makes it."""
    return direction << 30 | size << 16 | ord("E") << 8 | call


def open_evdev(path: str, grab: bool) -> Fd:
    """The device at `path`, ours alone if it is grabbed. Raises FileRefused, of `evdev`."""
    try:
        file = Fd(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            _ask(file, GID, INPUT_ID.size)
            if grab:
                fcntl.ioctl(file.fileno(), number(WRITE, GRAB, 4), 1)
        except OSError as error:
            file.close()
            if error.errno == errno.ENOTTY:
                raise FileRefused("evdev", f"{path}: not an input device") from error
            if error.errno == errno.EBUSY:
                raise BlockingIOError(error.errno, "somebody else has grabbed it") from error
            raise
    except OSError as error:
        raise FileRefused("evdev", f"{path}: {error.strerror}") from error
    return file


def describe(file: Fd) -> Kind:
    """What the device is, as the kernel has it."""
    codes = {kind: frozenset(_bits(_ask(file, GBIT + kind, MOST_CODES // 8))) for kind in PASSED_ON}
    axes = {}
    for axis in codes[InputType.ABS]:
        _, *bounds = ABS_INFO.unpack(_ask(file, GABS + axis, ABS_INFO.size))
        axes[axis] = Axis(*bounds)
    bus, vendor, product, version = INPUT_ID.unpack(_ask(file, GID, INPUT_ID.size))
    return Kind(
        name=_text(file, GNAME),
        codes={kind: found for kind, found in codes.items() if found},
        axes=axes,
        ids=(bus, vendor, product, version),
        serial=_text(file, GUNIQ),
        properties=frozenset(_bits(_ask(file, GPROP, 4))),
    )


class Evdev:
    """A device of the host as a source of events."""

    waits = False  # what somebody has typed before is not for the guest

    def __init__(self, file: Fd, kind: Kind) -> None:
        self._file = file
        self._kind = kind

    def length(self, data: bytes) -> int:
        """An event has its time, which is not zero."""
        for at in range(0, len(data) - INPUT_EVENT.size + 1, INPUT_EVENT.size):
            if not any(data[at : at + INPUT_EVENT.size]):
                return at
        return len(data) // INPUT_EVENT.size * INPUT_EVENT.size

    def frames(self, data: bytes) -> Iterator[tuple[int, list[int]]]:
        """What ends with a report. If the kernel has dropped some of it, the driver is told how
        each key and axis is instead.
        """
        events: list[int] = []
        dropped = False
        whole = len(data) // INPUT_EVENT.size * INPUT_EVENT.size
        for place, event in enumerate(INPUT_EVENT.iter_unpack(data[:whole]), start=1):
            _, _, kind, code, value = event
            if (kind, code) == (InputType.SYN, SYN_DROPPED):
                dropped = True
            elif kind == InputType.SYN or self._kind.has(kind, code):
                events.append(packed(kind, code, value))
            if (kind, code) == (InputType.SYN, SYN_REPORT):
                yield place * INPUT_EVENT.size, self._state() if dropped else events
                events, dropped = [], False

    def overlong(self, data: bytes) -> list[int]:
        """Part of it is as good as the whole: the report follows."""
        report = INPUT_EVENT.pack(0, 0, InputType.SYN, SYN_REPORT, 0)
        ((_, events),) = self.frames(data + report)
        return events[:-1]

    def status(self, kind: int, code: int, value: int) -> None:
        """Lights and sounds of the host's device."""
        if kind in TAKEN and self._kind.has(kind, code):
            signed = value - (1 << 32) if value >= 1 << 31 else value
            event = INPUT_EVENT.pack(0, 0, kind, code, signed)
            os.write(self._file.fileno(), event + INPUT_EVENT.pack(0, 0, 0, 0, 0))

    def _state(self) -> list[int]:
        """All keys and axes as they are; a driver makes nothing of what it knows already."""
        down = set(_bits(_ask(self._file, GKEY, MOST_CODES // 8)))
        events = [
            packed(InputType.KEY, code, code in down)
            for code in sorted(self._kind.codes.get(InputType.KEY, ()))
        ]
        for axis in sorted(self._kind.axes):
            value, *_ = ABS_INFO.unpack(_ask(self._file, GABS + axis, ABS_INFO.size))
            events.append(packed(InputType.ABS, axis, value))
        return [*events, REPORT]


def _ask(file: Fd, call: int, size: int) -> bytes:
    answer = array.array("B", bytes(size))
    fcntl.ioctl(file.fileno(), number(READ, call, size), answer, True)
    return answer.tobytes()


def _text(file: Fd, call: int) -> str:
    """Some have no name, and most no serial number."""
    try:
        return _ask(file, call, TEXT_BYTES).partition(b"\0")[0].decode(errors="replace")
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return ""


def _bits(bits: bytes) -> Iterable[int]:
    found = int.from_bytes(bits, "little")  # the kernel's words, on a little-endian machine
    return (code for code in range(len(bits) * 8) if found >> code & 1)
