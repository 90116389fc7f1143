"""A device whose requests wait until the test lets them go."""

from __future__ import annotations

import os
import select
from collections import deque
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from vuproc import Device, Request
from vuproc.fd import Fd
from vuproc.options import FilePath, Options

ANSWER = b"done"


class GatedOptions(Options, kw_only=True):
    """`gate` names the FIFOs, two a queue: `gate.0`, `gate.0.taken`, `gate.1`, ..."""

    gate: Annotated[FilePath, Meta(description="Where the FIFOs are.")]


class Gated(Device):
    """Reads a request when it comes; each byte in its queue's FIFO answers one."""

    device_id = 42
    options_type = GatedOptions

    def setup(self, queue: int) -> None:
        assert isinstance(self.options, GatedOptions)
        assert not hasattr(self, "_gate"), "a worker has one queue"
        self._gate = _open(f"{self.options.gate}.{queue}")
        self._taken = _open(f"{self.options.gate}.{queue}.taken")
        self._waiting: deque[Request] = deque()
        self._may_go = 0
        self.watch(self._gate, self._let_go)

    def handle(self, request: Request) -> None:
        request.read()
        request.defer()
        self._waiting.append(request)
        os.write(self._taken.fileno(), b"\0")
        self._answer()

    def ring_stopped(self, queue: int) -> None:
        self._waiting.clear()

    def teardown(self) -> None:
        self.unwatch(self._gate)
        self._gate.close()
        self._taken.close()

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
        self._gates = [_made(f"{self.path}.{queue}") for queue in range(queues)]
        self._taken = [_made(f"{self.path}.{queue}.taken") for queue in range(queues)]

    def let_go(self, queue: int, count: int = 1) -> None:
        """Complete so many requests of a queue, the oldest first."""
        os.write(self._gates[queue].fileno(), b"\0" * count)

    def await_taken(self, queue: int, count: int, timeout_s: float = 30.0) -> None:
        """Wait until the device has so many more requests of a queue in its hands."""
        taken = self._taken[queue]
        poller = select.poll()
        poller.register(taken.fileno(), select.POLLIN)
        while count:
            assert poller.poll(timeout_s * 1000), "the device did not take the requests"
            count -= len(os.read(taken.fileno(), count))

    def close(self) -> None:
        for fd in (*self._gates, *self._taken):
            fd.close()


def _open(name: str) -> Fd:
    # For reading and writing, so that it neither waits for another end nor comes to an end.
    return Fd(os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))


def _made(name: str) -> Fd:
    os.mkfifo(name)
    return _open(name)
