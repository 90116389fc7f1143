"""A virtio console (virtio 1.3, section 5.3) whose size may change: a queue to receive from and one
to send to.
"""

from __future__ import annotations

import os
import struct
from typing import Annotated

from msgspec import Meta

from vuproc import Device, FilePath, Options, Request

RECEIVE, TRANSMIT = 0, 1
F_SIZE = 1 << 0
CONFIG = struct.Struct("<HHII")
"""virtio_console_config: columns, rows, ports, and a register for emergencies."""


class ConsoleOptions(Options, kw_only=True):
    """Where its input comes from."""

    typed: Annotated[FilePath, Meta(description="A named pipe: what is typed on the console.")]


class Console(Device):
    """Answers each line in upper case, and takes `size COLUMNS ROWS` for the user's window."""

    device_id = 3
    queues = 2
    features = F_SIZE
    options_type = ConsoleOptions
    options: ConsoleOptions

    size = 80, 25

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(RECEIVE, TRANSMIT)]

    def config_space(self) -> bytes:
        return CONFIG.pack(*self.size, 1, 0)

    def setup(self, queue: int) -> None:
        if queue == RECEIVE:
            self.waiting = bytearray()
            self.line = bytearray()
            self.pipe = os.open(self.options.typed, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self.watch(self.pipe, self.type)

    def pulls(self, queue: int) -> bool:
        return queue == RECEIVE

    def type(self) -> None:
        self.waiting += os.read(self.pipe, 4096)
        self.available(RECEIVE)

    def available(self, queue: int) -> None:
        while self.waiting:
            buffer = self.take(RECEIVE)
            if buffer is None:
                return
            del self.waiting[: buffer.write(self.waiting)]
            buffer.finish()

    def handle(self, request: Request) -> None:
        self.line += request.read()
        while b"\n" in self.line:
            line, _, self.line = self.line.partition(b"\n")
            words = line.split()
            if words[:1] == [b"size"]:
                self.size = int(words[1]), int(words[2])
                self.config_changed()
            else:
                self.waiting += line.upper() + b"\n"
        self.available(RECEIVE)
