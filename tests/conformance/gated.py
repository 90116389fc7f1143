"""A device whose requests wait until the test lets them go."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from vuproc import Device, Request
from vuproc.fd import Fd
from vuproc.options import FilePath, Options

ANSWER = b"done"


class GatedOptions(Options, kw_only=True):
    """`gate` names the FIFOs, one a queue: `gate.0`, `gate.1`, ..."""

    gate: Annotated[FilePath, Meta(description="Where the FIFOs are.")]


class Gated(Device):
    """Reads a request when it comes; each byte in its queue's FIFO answers one."""

    device_id = 42
    options_type = GatedOptions

    def setup(self, queue: int) -> None:
        assert isinstance(self.options, GatedOptions)
        assert not hasattr(self, "_gate"), "a worker has one queue"
        # Open for writing too, so that it never ends.
        fd = os.open(f"{self.options.gate}.{queue}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._gate = Fd(fd)
        self._waiting: deque[Request] = deque()
        self._may_go = 0
        self.watch(fd, self._let_go)

    def handle(self, request: Request) -> None:
        request.read()
        request.defer()
        self._waiting.append(request)
        self._answer()

    def ring_stopped(self, queue: int) -> None:
        self._waiting.clear()

    def teardown(self) -> None:
        self.unwatch(self._gate.fileno())
        self._gate.close()

    def _let_go(self) -> None:
        self._may_go += len(os.read(self._gate.fileno(), 4096))
        self._answer()

    def _answer(self) -> None:
        while self._waiting and self._may_go:
            self._may_go -= 1
            request = self._waiting.popleft()
            request.write(ANSWER)
            request.finish()


class Gates:
    """The test's side: makes the FIFOs, and lets requests go."""

    def __init__(self, directory: Path, queues: int) -> None:
        self.path = directory / "gate"
        self._fds = []
        for queue in range(queues):
            name = f"{self.path}.{queue}"
            os.mkfifo(name)
            self._fds.append(Fd(os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)))

    def let_go(self, queue: int, count: int = 1) -> None:
        """Complete so many requests of a queue, the oldest first."""
        os.write(self._fds[queue].fileno(), b"\0" * count)

    def close(self) -> None:
        for fd in self._fds:
            fd.close()
