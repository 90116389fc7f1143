"""Devices whose state is in files that outlive their workers."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from vuproc import Device, Fd, FilePath, Options, Request, shared


class Count(ctypes.Structure):
    _fields_ = [("requests", ctypes.c_uint64), ("workers", ctypes.c_uint64)]
    requests: int
    workers: int


class Counts(Device):
    """Counts its requests, whatever happens to its workers."""

    device_id = 42
    queues = 1

    def shared_files(self) -> dict[str, Fd]:
        return {"count": shared.struct_file(Count)}

    def setup(self, queue: int) -> None:
        self.count = shared.struct(Count, self.shared["count"])
        self.count.workers += 1

    def handle(self, request: Request) -> None:
        if request.read() == b"die":
            if self.count.requests % 2:
                self.count.requests += 1
                os.kill(os.getpid(), signal.SIGKILL)
            self.count.requests += 1
        self.count.requests += 1
        request.write(b"%d %d" % (self.count.requests, self.count.workers))


class WireOptions(Options, kw_only=True):
    wire: Annotated[str, Meta(description="What it is connected to.")]
    path: Annotated[FilePath, Meta(description="Where the socket is.")] = ""


class Wired(Device):
    """Passes what it gets to a tap, a pty or a socket, and what comes from there to its driver."""

    device_id = 42
    queues = 2
    options_type = WireOptions
    options: WireOptions

    def queue_groups(self) -> list[tuple[int, ...]]:
        return [(0, 1)]

    def shared_files(self) -> dict[str, Fd]:
        match self.options.wire.partition(":"):
            case "pty", _, _:
                made = shared.pty()
                Path(self.options.path).write_text(made.path)
                return {"wire": made.master, "terminal": made.terminal}
            case "socket", _, _:
                return {"wire": shared.listening_socket(self.options.path)}
            case _, _, name:
                return {"wire": shared.tap(name)}

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        return "wire" in left

    def setup(self, queue: int) -> None:
        if queue:
            return
        self.backlog: list[bytes] = []
        self.wire = self.shared["wire"].fileno()
        if self.options.wire == "socket":
            self.listener = socket.socket(fileno=os.dup(self.wire))
            self.watch(self.listener, self.accept)
        else:
            self.watch(self.wire, self.come)

    def accept(self) -> None:
        client, _ = self.listener.accept()
        client.setblocking(False)
        self.wire = client.detach()
        self.watch(self.wire, self.come)

    def come(self) -> None:
        self.backlog.append(os.read(self.wire, 2048))
        if not self.backlog[-1]:
            self.unwatch(self.wire)
            self.backlog.pop()
        self.available(0)

    def pulls(self, queue: int) -> bool:
        return queue == 0

    def available(self, queue: int) -> None:
        while self.backlog:
            buffer = self.take(0)
            if buffer is None:
                return
            buffer.write(self.backlog.pop(0))
            buffer.finish()

    def handle(self, request: Request) -> None:
        os.write(self.wire, request.read())
