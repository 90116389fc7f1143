"""Devices with a state of their own, which a front-end moves from one to another."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import ClassVar

from vuproc import Device, Fd, Request, shared

LARGE = 5 << 20
"""Bytes of a large state: no pipe holds it."""


class Notes(Device):
    """Remembers what the driver says, and repeats it. Some words mean something else."""

    device_id = 42
    queues = 2
    state_version = 2

    def setup(self, queue: int) -> None:
        self.notes = b""

    def reset(self) -> None:
        self.notes = b""

    def handle(self, request: Request) -> None:
        said = request.read()
        if said:
            self.notes = said if said != b"large" else os.urandom(LARGE)
        request.write(self.notes[: request.writable_total])

    def save_state(self) -> bytes:
        match self.notes:
            case b"raise":
                raise ValueError("nothing to be had")
            case b"text":
                return "text"  # type: ignore[return-value]
            case b"too much":
                return bytes((64 << 20) + 1)
            case b"die":
                os.kill(os.getpid(), signal.SIGKILL)
        word, _, pid = self.notes.partition(b" ")
        if word == b"kill":
            # The master: this worker ends with it.
            os.kill(int(pid), signal.SIGKILL)
            signal.pause()
        return self.notes

    def load_state(self, data: bytes, version: int) -> None:
        if data == b"raise later":
            raise ValueError("not like this")
        if data == b"die later":
            os.kill(os.getpid(), signal.SIGKILL)
        self.notes = data if version == self.state_version else b"of version %d" % version


class OlderNotes(Notes):
    """The same, in an older version; for its name it counts as the same."""

    state_version = 1


OlderNotes.__name__ = Notes.__name__


class OtherNotes(Notes):
    """Another device."""


class Total(ctypes.Structure):
    _fields_ = [("total", ctypes.c_uint64)]
    total: int


class Sum(Device):
    """Adds up numbers of two queues, a worker each: the state is in a file that they share."""

    device_id = 42
    queues = 2
    shared_name: ClassVar[str] = "total"

    def shared_files(self) -> dict[str, Fd]:
        return {self.shared_name: shared.struct_file(Total)}

    def setup(self, queue: int) -> None:
        self.state = shared.struct(Total, self.shared[self.shared_name])

    def handle(self, request: Request) -> None:
        self.state.total += int(request.read())
        request.write(b"%d" % self.state.total)

    def save_state(self) -> bytes:
        return b"%d" % self.state.total

    def load_state(self, data: bytes, version: int) -> None:
        self.state.total = int(data)


class Plain(Device):
    """Has nothing to move."""

    device_id = 42

    def handle(self, request: Request) -> None:
        request.write(b"done")
