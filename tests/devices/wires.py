"""I2C devices of an author's: a chip of his own, and a bus of the host whose library is made up."""

from __future__ import annotations

import errno
import os
import sys
from types import ModuleType
from typing import Any, ClassVar

from vuproc import Fd, Request
from vuproc.devices.i2c import I2c
from vuproc.devices.i2c_chips import Chip, Nak
from vuproc.devices.i2c_host import HostBus

COUNTER, BROKEN = 0x10, 0x12


class Counter(Chip):
    """Counts how often it was read."""

    memory_size = 1

    def write(self, data: bytes) -> None:
        if data:
            raise Nak("nobody writes here")

    def read(self, count: int) -> bytes:
        self.position += 1
        return self.position.to_bytes(4, "big")


class Broken(Chip):
    """A mistake of its author's."""

    def read(self, count: int) -> bytes:
        raise RuntimeError("broken chip")

    def write(self, data: bytes) -> None:
        raise RuntimeError("broken chip")


class Rig(I2c):
    """A bus with them."""

    def chips(self) -> dict[int, Chip]:
        return {**super().chips(), COUNTER: Counter(), BROKEN: Broken()}


# The part of smbus2 that is used.


class Message:
    def __init__(self, addr: int, flags: int, data: bytes) -> None:
        self.addr, self.flags, self.data = addr, flags, data

    @staticmethod
    def read(address: int, length: int) -> Message:
        return Message(address, 1, bytes(length))

    @staticmethod
    def write(address: int, buf: bytes) -> Message:
        return Message(address, 0, bytes(buf))

    def __bytes__(self) -> bytes:
        return self.data


class SMBus:
    """Keeps what each transaction was in the file that is its bus; a read gives the last one's
    number of messages. Address 0x13 is nobody's, 0x14 is killed, and 0x15 is a mistake.
    """

    fd: int | None = None

    def i2c_rdwr(self, *messages: Message) -> None:
        assert self.fd is not None
        said = " ".join(f"{m.flags:x}:{m.addr:x}:{m.data.hex()}" for m in messages)
        os.write(self.fd, said.encode() + b"\n")
        for message in messages:
            match message.addr:
                case 0x13:
                    raise OSError(errno.ENXIO, "no such device or address")
                case 0x14:
                    os.abort()
                case 0x15:
                    raise TypeError("a mistake")
            if message.flags & 1:
                message.data = bytes([len(messages)] * len(message.data))


class Host(I2c):
    """A bus of the host: a file that the environment names."""

    patience_s: ClassVar[float] = 60.0

    def open_bus(self) -> dict[str, Fd]:
        path = os.environ["VUPROC_TEST_BUS"]
        return {"bus": Fd(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC))}

    def handle(self, request: Request) -> None:
        super().handle(request)
        if not request.finished:
            self.log.info("kept for the rest of its group")

    def make_bus(self) -> HostBus:
        made: Any = ModuleType("smbus2")
        made.SMBus, made.i2c_msg = SMBus, Message
        sys.modules["smbus2"] = made
        (file,) = self.shared.values()
        return HostBus(file, self.finish_together, lambda problem: self.log.info("%s", problem))


class Hasty(Host):
    """Does not wait for long for the rest of a group."""

    patience_s: ClassVar[float] = 0.05
