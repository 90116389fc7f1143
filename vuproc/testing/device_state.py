"""The device's own state as a front-end moves it: through a pipe, and then it asks how it went."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

from vuproc.fd import Fd
from vuproc.spec.vhost_user import STATE_FD_NO_FD, STATE_PHASE_STOPPED, StateDirection
from vuproc.testing.errors import NoReply, Refused

if TYPE_CHECKING:
    from vuproc.testing.frontend import FrontEnd

CHUNK = 64 << 10
"""Bytes of one read or write."""


def save(front_end: FrontEnd) -> bytes:
    """What the device gives. Raises Refused, or NoReply for a pipe that does not end in time."""
    came = bytearray()
    with begin(front_end, StateDirection.SAVE) as pipe:
        until = _Until(pipe, select.POLLIN, front_end.timeout_s)
        while data := os.read(until.ready(), CHUNK):
            came += data
    check(front_end)
    return bytes(came)


def load(front_end: FrontEnd, state: bytes) -> None:
    """Give the device what another has given. Raises Refused, or NoReply for a pipe that is not
    emptied in time.
    """
    with begin(front_end, StateDirection.LOAD) as pipe:
        until = _Until(pipe, select.POLLOUT, front_end.timeout_s)
        left = memoryview(state)
        try:
            while left:
                left = left[os.write(until.ready(), left[:CHUNK]) :]
        except BrokenPipeError:
            pass  # the device has had enough of it, and says so
    check(front_end)


def begin(
    front_end: FrontEnd, direction: StateDirection, *, phase: int = STATE_PHASE_STOPPED
) -> Fd:
    """SET_DEVICE_STATE_FD with a new pipe; our end of it, non-blocking, which is the caller's.

    Raises Refused. The transfer ends when it is closed: read all there is to save, or write all
    there is to load.
    """
    reads, writes = (Fd(number) for number in os.pipe2(os.O_CLOEXEC))
    ours, theirs = (reads, writes) if direction == StateDirection.SAVE else (writes, reads)
    os.set_blocking(ours.fileno(), False)
    try:
        with theirs:
            send(front_end, theirs, direction, phase=phase)
    except BaseException:
        ours.close()
        raise
    return ours


def send(front_end: FrontEnd, fd: Fd, direction: int, *, phase: int = STATE_PHASE_STOPPED) -> None:
    """SET_DEVICE_STATE_FD with this descriptor, which stays the caller's. Raises Refused."""
    name = "SET_DEVICE_STATE_FD"
    code = front_end.request(name, [fd], direction=int(direction), phase=phase)["value"]
    if code != STATE_FD_NO_FD:
        raise Refused(name, code)


def check(front_end: FrontEnd) -> None:
    """CHECK_DEVICE_STATE, once our end of the pipe is closed. Raises Refused."""
    code = front_end.request("CHECK_DEVICE_STATE")["value"]
    if code:
        raise Refused("CHECK_DEVICE_STATE", code)


class _Until:
    """One end of a pipe that is waited for, for so many seconds altogether."""

    def __init__(self, pipe: Fd, event: int, timeout_s: float) -> None:
        self._pipe = pipe
        self._poller = select.poll()
        self._poller.register(pipe.fileno(), event)
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    def ready(self) -> int:
        """The descriptor, once it is ready. Raises NoReply."""
        left = max(0.0, self._deadline - time.monotonic())
        if not self._poller.poll(left * 1000):
            raise NoReply("the transfer of its state", self._timeout_s)
        return self._pipe.fileno()
