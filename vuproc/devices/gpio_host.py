"""Lines of the host's GPIO chips, by the calls of Linux's character device.

By the kernel's own calls rather than a library's request, which ends with its process: a line keeps
its value for as long as its descriptor is open, and that has to outlive workers.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from vuproc.devices.gpio_lines import State
from vuproc.errors import FileRefused
from vuproc.fd import Fd
from vuproc.spec.gpio import Direction, IrqType

MOST_HOST_LINES = 64
"""Each has a descriptor, in the master and in each worker."""
CONSUMER = b"vuproc"
CHIP_INFO = struct.Struct("@32s32sI")
"""gpiochip_info of Linux (gpio.h): name, label, how many lines."""
ATTRIBUTE = struct.Struct("@IIQQ")
"""gpio_v2_line_config_attribute: id, padding, value, mask."""
MOST_ATTRIBUTES = 10
CONFIG = struct.Struct(f"@QI20x{ATTRIBUTE.size * MOST_ATTRIBUTES}s")
"""gpio_v2_line_config: flags, how many attributes, and these."""
REQUEST = struct.Struct(f"@I252x32s{CONFIG.size}sII20xi")
"""gpio_v2_line_request: the first of 64 offsets, consumer, config, lines, event buffer, fd."""
VALUES = struct.Struct("@QQ")
"""gpio_v2_line_values: bits and mask."""
EVENT_BYTES = 48
"""gpio_v2_line_event."""
MOST_EVENTS = 16
"""Events of one line that the kernel keeps."""

READ, READ_WRITE = 2, 3
"""Directions of an ioctl's number."""
GET_CHIPINFO = READ << 30 | CHIP_INFO.size << 16 | 0xB4 << 8 | 0x01
GET_LINE, SET_CONFIG, GET_VALUES = (
    READ_WRITE << 30 | kind.size << 16 | 0xB4 << 8 | call
    for kind, call in ((REQUEST, 0x07), (CONFIG, 0x0D), (VALUES, 0x0E))
)
INPUT, OUTPUT, RISING, FALLING = 1 << 2, 1 << 3, 1 << 4, 1 << 5
"""Flags of a line."""
OUTPUT_VALUES = 2
"""Id of the attribute with the value that an output begins with."""
EDGES = {
    IrqType.EDGE_RISING: RISING,
    IrqType.EDGE_FALLING: FALLING,
    IrqType.EDGE_BOTH: RISING | FALLING,
    IrqType.LEVEL_HIGH: RISING,
    IrqType.LEVEL_LOW: FALLING,
}
"""What is to be told of: for a level, that it has come."""


def open_lines(chip: str, offsets: Sequence[int]) -> list[Fd]:
    """A descriptor for each line, whose direction stays as it is. Raises FileRefused, of `chip`."""
    lines: list[Fd] = []
    try:
        with Fd(os.open(chip, os.O_RDWR | os.O_CLOEXEC)) as file:
            try:
                info = fcntl.ioctl(file.fileno(), GET_CHIPINFO, bytes(CHIP_INFO.size))
            except OSError as error:
                raise FileRefused("chip", f"{chip}: not a GPIO chip") from error
            _, _, count = CHIP_INFO.unpack(info)
            for offset in offsets:
                if offset >= count:
                    raise FileRefused("chip", f"{chip} has {count} lines, and none {offset}")
                lines.append(_line(file, offset))
    except BaseException as error:
        for line in lines:
            line.close()
        if not isinstance(error, OSError):
            raise
        raise FileRefused("chip", f"{chip}: {error.strerror}") from error
    return lines


def _line(chip: Fd, offset: int) -> Fd:
    request = REQUEST.pack(offset, CONSUMER, CONFIG.pack(0, 0, b""), 1, 0, 0)
    try:
        *_, fd = REQUEST.unpack(fcntl.ioctl(chip.fileno(), GET_LINE, request))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BlockingIOError(error.errno, f"line {offset} is in use") from error
        raise
    os.set_inheritable(fd, False)
    os.set_blocking(fd, False)
    return Fd(fd)


class HostLines:
    """The lines of one worker."""

    def __init__(self, state: State, files: Sequence[Fd]) -> None:
        self._state = state
        self._files = files

    def apply(self, line: int) -> list[int]:
        """Have the kernel know. A line that is not used is an input: it drives nothing."""
        state, file = self._state, self._files[line].fileno()
        if state.direction[line] == Direction.OUT:
            value = ATTRIBUTE.pack(OUTPUT_VALUES, 0, state.output[line], 1)
            config = CONFIG.pack(OUTPUT, 1, value)
        else:
            edges = EDGES.get(IrqType(state.irq[line]), 0)
            config = CONFIG.pack(INPUT | edges, 0, b"")
        fcntl.ioctl(file, SET_CONFIG, config)
        return [line]

    def level(self, line: int) -> int:
        """What the kernel senses."""
        values = array.array("B", VALUES.pack(0, 1))
        fcntl.ioctl(self._files[line].fileno(), GET_VALUES, values, True)
        return int(VALUES.unpack(values)[0] & 1)

    def empty(self, line: int) -> bool:
        """Take what the kernel has told of a line; whether there was something."""
        try:
            return bool(os.read(self._files[line].fileno(), EVENT_BYTES * MOST_EVENTS))
        except BlockingIOError:
            return False
