"""Moves the device's own state through a pipe of the front-end's, beside the loop's other work.

The device's code runs inside commands alone, where the master watches over it: a state that is
saved is there before the first byte goes out, and one that came is loaded when the front-end asks
whether all went well. In between the pipe is written or read as far as it goes, until its end or
`TRANSFER_S`.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable
from typing import Protocol

from vuproc import texts
from vuproc.device import Device
from vuproc.fd import Fd
from vuproc.vhost_user.effects import CheckTransfer, EndTransfer, LoadState, SaveState
from vuproc.workers import state_bytes
from vuproc.workers.control import Refusal
from vuproc.workers.device_code import DeviceCode
from vuproc.workers.poller import Watcher
from vuproc.workers.state_bytes import StateError

log = logging.getLogger("vuproc.worker")

TRANSFER_S = 60.0
"""Seconds for the whole of it, however the front-end deals with its end of the pipe."""
CHECK_S = 2.0
"""Seconds that are left once the front-end asks how it went: its own part is over by then, and it
waits, with all of its guest.
"""
CHUNK = 256 << 10
"""Bytes that are written or read between two looks at other work; a pipe holds 64 KiB, or 1 MiB."""


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """Do not call any more."""


CallLater = Callable[[float, Callable[[], None]], Timer]


class _Saving:
    """A state on its way out."""

    events = select.EPOLLOUT

    def __init__(self, moved: bytes) -> None:
        self._all = len(moved)
        self._left = memoryview(moved)

    def step(self, number: int) -> bool:
        """Write some bytes; whether those were the last."""
        self._left = self._left[os.write(number, self._left[:CHUNK]) :]
        return not self._left

    def load(self, transfer: StateTransfer) -> None:
        """Nothing came."""

    def __str__(self) -> str:
        return f"{self._all - len(self._left)} of {self._all} bytes were taken"


class _Loading:
    """One that comes in."""

    events = select.EPOLLIN

    def __init__(self) -> None:
        self._came = bytearray()

    def step(self, number: int) -> bool:
        """Read some bytes; whether the end has come. Raises StateError for too many."""
        data = os.read(number, CHUNK)
        self._came += data
        if len(self._came) > state_bytes.ALL_MAX:
            raise StateError(f"more than {state_bytes.ALL_MAX} bytes came")
        return not data

    def load(self, transfer: StateTransfer) -> None:
        """Have the device take it."""
        transfer.load_into_device(self._came)

    def __str__(self) -> str:
        return f"{len(self._came)} bytes came, and not the end"


class StateTransfer:
    """At most one transfer of the state of `device`; in the worker that speaks for it."""

    def __init__(
        self, device: Device, code: DeviceCode, watcher: Watcher, call_later: CallLater
    ) -> None:
        self._device = device
        self._code = code
        self._watcher = watcher
        self._call_later = call_later
        self._what: _Saving | _Loading | None = None
        """What was begun, until it is checked."""
        self._pipe: Fd | None = None
        """Open until all is moved, or nothing more will be."""
        self._problem: str | None = None
        self._timer: Timer | None = None

    @property
    def moving(self) -> bool:
        """Whether bytes are to be written or read still."""
        return self._pipe is not None

    def carry_out(self, order: SaveState | LoadState | CheckTransfer | EndTransfer) -> None:
        """What the front-end wants of it. Raises Refusal where a method below raises StateError."""
        try:
            match order:
                case SaveState(fd=fd):
                    self.save(fd)
                case LoadState(fd=fd):
                    self.load(fd)
                case CheckTransfer():
                    self.check()
                case EndTransfer():
                    self.end()
        except StateError as error:
            raise Refusal(str(error)) from error

    def save(self, pipe: Fd) -> None:
        """Begin to write the device's state into `pipe`, which is ours from then on; instead of any
        transfer before. Raises StateError if the device gives none, and then has not taken it.
        """
        self.end()
        data = self._saved()
        kind = state_bytes.kind_of(self._device)
        self._begin(_Saving(state_bytes.pack(kind, data)), pipe)
        log.info("device state: %d bytes of version %d to be saved", len(data), kind.version)

    def load(self, pipe: Fd) -> None:
        """Begin to read a state from `pipe`, likewise."""
        self.end()
        self._begin(_Loading(), pipe)

    def hurry(self) -> None:
        """The front-end waits for the end."""
        if self.moving:
            self._limit(CHECK_S)

    def check(self) -> None:
        """The end has come: have the device load what was to be loaded. Raises StateError if
        anything of it has failed, or nothing was begun.
        """
        what, problem = self._what, self._problem
        self._what = self._problem = None
        if what is None:
            raise StateError("no transfer was begun, or the worker that had begun it has died")
        if problem is not None:
            raise StateError(problem)
        what.load(self)

    def end(self) -> None:
        """Give up what is not over. What came and was not checked is lost."""
        if self._what is not None and (self.moving or isinstance(self._what, _Loading)):
            log.warning("the transfer of the device's state is given up: %s", self._what)
        self._close()
        self._what = self._problem = None

    def load_into_device(self, came: bytearray) -> None:
        """What came is the device's state from now on. Raises StateError if it does not take it."""
        data, version = state_bytes.unpack(state_bytes.kind_of(self._device), came)
        try:
            with self._code.in_hook():
                self._device.load_state(data, version)
        except Exception as error:
            raise StateError(f"load_state: {texts.described(error)}") from error
        log.info("device state: %d bytes of version %d loaded", len(data), version)

    def _saved(self) -> bytes:
        try:
            with self._code.in_hook():
                data: object = self._device.save_state()
        except Exception as error:
            raise StateError(f"save_state: {texts.described(error)}") from error
        if not isinstance(data, bytes | bytearray):
            raise StateError(f"save_state returned {type(data).__name__}, not bytes")
        return bytes(data)

    def _begin(self, what: _Saving | _Loading, pipe: Fd) -> None:
        # The flag is that of our end, of which the front-end keeps no copy. Should it do so and
        # take the bytes that we were told of, we are not to wait for others.
        os.set_blocking(pipe.fileno(), False)
        self._watcher.add(pipe.fileno(), lambda _mask: self._step(), what.events)
        self._what, self._pipe = what, pipe
        self._limit(TRANSFER_S)

    def _step(self) -> None:
        if self._what is None or self._pipe is None:
            return
        try:
            if self._what.step(self._pipe.fileno()):
                self._close()
        except BlockingIOError:
            pass
        except StateError as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(f"{error.strerror}: {self._what}")

    def _limit(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._call_later(
            seconds, lambda: self._fail(f"{self._what} within {texts.seconds(seconds)}")
        )

    def _fail(self, problem: str) -> None:
        self._problem = problem
        self._close()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._watcher.remove(pipe.fileno())
            pipe.close()
