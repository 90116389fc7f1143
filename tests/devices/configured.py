"""Devices whose configuration space says something else as time goes by."""

from __future__ import annotations

import mmap
import os
from typing import ClassVar

from vuproc import Device, Fd, Request

CONFIG = 16
"""Bytes of each configuration space."""
NAMES = {1: b"a name", 3: b"no. 17"}


def asked(request: Request) -> tuple[bytes, bytes]:
    """A word and what follows it."""
    word, _, rest = request.read().partition(b" ")
    return word, rest


class Selects(Device):
    """What the driver writes to the first two bytes decides on what follows, as with virtio-input:
    select, subsel, size, and `size` bytes.
    """

    device_id = 18
    queues = 2

    select = subsel = 0
    writes = 0

    def config_space(self) -> bytes:
        found = NAMES.get(self.select, b"")
        if self.select == 0x11:
            found = bytes([self.subsel]) * self.subsel
        head = bytes([self.select, self.subsel, len(found)])
        return (head + found).ljust(CONFIG, b"\0")

    def config_written(self, offset: int, data: bytes) -> None:
        if self.select == 0xEE:
            raise ValueError("nothing more")
        self.writes += 1
        where = bytearray((self.select, self.subsel))
        where[offset : offset + len(data)] = data
        self.select, self.subsel = where[:2]

    def reset(self) -> None:
        self.select = self.subsel = 0

    def handle(self, request: Request) -> None:
        request.write(bytes([self.select, self.subsel, self.writes]))


class QueueTells(Selects):
    """Each queue's worker has it that there is something else to read; only one is listened to."""

    queue = 0

    def setup(self, queue: int) -> None:
        self.queue = queue

    def config_space(self) -> bytes:
        return super().config_space()[:-1] + bytes([self.queue])


class Grows(Device):
    """Says a byte more with each word of the driver's."""

    device_id = 42

    length = CONFIG

    def config_space(self) -> bytes:
        return b"c" * self.length

    def config_written(self, offset: int, data: bytes) -> None:
        self.length = data[0]

    def handle(self, request: Request) -> None:
        word, rest = asked(request)
        if word == b"grow":
            self.length = int(rest)
            self.config_changed()
        request.write(b"done")


class Static(Device):
    """Always the same, with a field that the driver may write to, as blk's write cache."""

    device_id = 42

    def config_space(self) -> bytes:
        return bytes(range(CONFIG))

    def config_written(self, offset: int, data: bytes) -> None:
        if offset != 4 or len(data) != 1:
            raise ValueError("only the byte at 4 is to be written")

    def handle(self, request: Request) -> None:
        request.write(b"done")


class Level(Device):
    """Shows a level that the requests set; in an attribute, so that it ends with its worker."""

    device_id = 42
    FIRST: ClassVar[int] = 1

    def setup(self, queue: int) -> None:
        self.level = self.FIRST

    def config_space(self) -> bytes:
        return getattr(self, "level", self.FIRST).to_bytes(CONFIG, "little")

    def handle(self, request: Request) -> None:
        word, rest = asked(request)
        match word:
            case b"set":
                self.level = int(rest)
                self.config_changed()
            case b"quietly":
                self.level = int(rest)
            case b"again":
                self.config_changed()
            case b"recovered":
                request.write(str(self.recovered).encode())
                return
        request.write(b"done")


class Kept(Level):
    """The same in shared memory: it outlives the worker, and the master."""

    def shared_files(self) -> dict[str, Fd]:
        file = Fd(os.memfd_create("level", os.MFD_CLOEXEC))
        os.truncate(file.fileno(), mmap.PAGESIZE)
        os.pwrite(file.fileno(), bytes([self.FIRST]), 0)
        return {"level": file}

    def setup(self, queue: int) -> None:
        pass

    @property
    def level(self) -> int:
        return os.pread(self.shared["level"].fileno(), 1, 0)[0] if self.shared else self.FIRST

    @level.setter
    def level(self, value: int) -> None:
        os.pwrite(self.shared["level"].fileno(), bytes([value]), 0)


class Elsewhere(Level):
    """Two workers, and the wrong one has something to say."""

    queues = 2
