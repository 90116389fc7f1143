"""A virtio keyboard (virtio 1.3, section 5.8): an event queue, a status queue, and a configuration
space in which the driver selects what it reads.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from typing import Annotated

from msgspec import Meta

from vuproc import Device, FilePath, Options, Request

EVENTS, STATUS = 0, 1

EVENT = struct.Struct("<HHI")
"""virtio_input_event: type, code, value."""
EV_SYN, EV_KEY, EV_LED = 0x00, 0x01, 0x11
"""Types of events (Linux, input-event-codes.h)."""
KEYS, LEDS = range(1, 128), range(3)

ID_NAME, ID_SERIAL, ID_DEVIDS, PROP_BITS, EV_BITS = 0x01, 0x02, 0x03, 0x10, 0x11
"""What the driver may select."""
HEAD = struct.Struct("<BBB5x")
"""virtio_input_config: select, subsel and size, before a union of 128 bytes."""
CONFIG_SIZE = HEAD.size + 128
VIRTUAL_BUS = 0x06
IDS = (VIRTUAL_BUS, 0x1234, 0x5678, 0x0100)


def bitmap(codes: range) -> bytes:
    """A bit for each code."""
    return sum(1 << code for code in codes).to_bytes(codes[-1] // 8 + 1, "little")


SHOWN = {
    (ID_NAME, 0): b"vuproc keyboard",
    (ID_SERIAL, 0): b"no. 17",
    (ID_DEVIDS, 0): struct.pack("<4H", *IDS),
    (EV_BITS, EV_KEY): bitmap(KEYS),
    (EV_BITS, EV_LED): bitmap(LEDS),
}
"""By what the driver has selected."""


class KeyboardOptions(Options, kw_only=True):
    """Where the keys come from."""

    keys: Annotated[FilePath, Meta(description="A named pipe: a byte for each key that is hit.")]


class Keyboard(Device):
    """Types what is written to a named pipe, and logs its lights."""

    device_id = 18
    queues = 2
    options_type = KeyboardOptions
    options: KeyboardOptions

    select = subsel = 0

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(EVENTS, STATUS)]

    # The configuration space.

    def config_space(self) -> bytes:
        shown = self.selected()
        return (HEAD.pack(self.select, self.subsel, len(shown)) + shown).ljust(CONFIG_SIZE, b"\0")

    def selected(self) -> bytes:
        return SHOWN.get((self.select, self.subsel), b"")

    def config_written(self, offset: int, data: bytes) -> None:
        # A driver writes one byte after the other, and QEMU passes all of the space on each time.
        where = bytearray((self.select, self.subsel))
        where[offset : offset + len(data)] = data
        self.select, self.subsel = where[:2]

    def reset(self) -> None:
        self.select = self.subsel = 0

    # The queues.

    def setup(self, queue: int) -> None:
        if queue == EVENTS:
            self.waiting: deque[bytes] = deque()
            self.pipe = os.open(self.options.keys, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self.watch(self.pipe, self.hit)

    def pulls(self, queue: int) -> bool:
        return queue == EVENTS

    def hit(self) -> None:
        for key in os.read(self.pipe, 64):
            for event in ((EV_KEY, key, 1), (EV_SYN, 0, 0), (EV_KEY, key, 0), (EV_SYN, 0, 0)):
                self.waiting.append(EVENT.pack(*event))
        self.available(EVENTS)

    def available(self, queue: int) -> None:
        while self.waiting:
            buffer = self.take(EVENTS)
            if buffer is None:
                return
            buffer.write(self.waiting.popleft())
            buffer.finish()

    def handle(self, request: Request) -> None:
        kind, code, value = EVENT.unpack(request.read(EVENT.size))
        if kind == EV_LED:
            self.log.info("light %d is %s", code, "on" if value else "off")
