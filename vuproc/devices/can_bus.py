"""Where the frames of a CAN device go and come from: back to it, or a bus that python-can knows."""

from __future__ import annotations

import errno
import functools
import importlib.util
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from vuproc.devices.can_frame import Frame

LOOPBACK = "loopback"
LIBRARY = "can"
"""The module of python-can."""
SEND_S = 0.1
"""Seconds that a frame may wait for room in the adapter's own queue."""
AGAIN_S = 0.001
"""Pause before the next try, where the kernel's queue is full and cannot be waited for."""
LISTEN_S = 0.2
"""How long a thread waits for a frame before it looks whether it is to end."""
MOST_AT_ONCE = 256
"""Frames for the driver before the worker looks at its queues again."""
MOST_FAILURES = 16
"""Failures in a row, none of them the kernel's, after which a bus counts as lost: python-can's
udp_multicast fails for each stray datagram.
"""
ECHOING = {"udp_multicast"}
"""Interfaces of python-can 4.6 that give a sender its own frames, though it has not asked."""
ECHO_S = 1.0
"""Seconds in which a frame comes back that does."""
MOST_ECHOES = 256
ERR_BUSOFF = 0x40
"""Bit of the identifier of socketcan's error frames (Linux, can/error.h)."""

_log = logging.getLogger("vuproc.device")


class BusLost(Exception):
    """The bus cannot be had, or is there no more; the message says why."""


def library_is_there() -> bool:
    """Whether python-can is installed. It is imported in a worker alone."""
    return importlib.util.find_spec(LIBRARY) is not None


class HostBus:
    """A bus of python-can's, open. `received` gets each frame of others, `lost` the reason of its
    end, both in the worker's thread.

    Its `interface` and `channel` are python-can's; what its configuration files say is left out.
    """

    def __init__(
        self,
        interface: str,
        *,
        channel: str | None,
        bitrate: int | None,
        fd: bool,
        received: Callable[[Frame], None],
        lost: Callable[[str], None],
    ) -> None:
        """Open it. Raises BusLost."""
        self._received = received
        self._lost = lost
        self._socketcan = interface == "socketcan"
        self._echoes: deque[tuple[Frame, float]] | None = None
        """What was sent and has not come back, oldest first, and until when it may."""
        if interface in ECHOING:
            self._echoes = deque(maxlen=MOST_ECHOES)
        wanted: dict[str, Any] = {"channel": channel, "bitrate": bitrate, "fd": fd or None}
        given = {name: value for name, value in wanted.items() if value is not None}
        try:
            self._can = importlib.import_module(LIBRARY)
            self._bus = self._can.Bus(interface=interface, ignore_config=True, **given)
        except Exception as error:
            # What an adapter's own library raises is anything.
            raise BusLost(f"{interface}: {error}") from error
        self._failures = 0
        self._thread: threading.Thread | None = None
        self._ends = threading.Event()

    def fileno(self) -> int:
        """A descriptor that is readable while there are frames to `read`; -1: it has none."""
        try:
            return int(self._bus.fileno())
        except NotImplementedError:
            return -1

    def send(self, frame: Frame) -> bool:
        """Whether the adapter has taken it. That it is on the bus is not said."""
        message = self._can.Message(
            arbitration_id=frame.id,
            is_extended_id=frame.extended,
            is_remote_frame=frame.remote,
            is_fd=frame.fd,
            data=frame.data,
            dlc=frame.length,
        )
        deadline = time.monotonic() + SEND_S
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                self._bus.send(message, timeout=left)
                if self._echoes is not None:
                    self._echoes.append((frame, time.monotonic() + ECHO_S))
                return True
            except self._can.CanError as error:
                # socketcan's queue may be full though its socket is writable.
                if left and getattr(error, "error_code", None) == errno.ENOBUFS:
                    time.sleep(AGAIN_S)
                    continue
                _log.warning("a frame was not sent: %s", error)
                return False

    def read(self) -> None:
        """Take what has come, without waiting."""
        for _ in range(MOST_AT_ONCE):
            try:
                message = self._bus.recv(0)
            except Exception as error:  # a library's own, too
                if self._fails(error):
                    self._lost(str(error))
                return
            if message is None or not self._take(message):
                return

    def listen(self, call_soon: Callable[[Callable[[], None]], None]) -> None:
        """Take what comes by a thread, from an adapter without a descriptor."""

        def work() -> None:
            while not self._ends.is_set():
                try:
                    message = self._bus.recv(LISTEN_S)
                except Exception as error:  # a library's own, too
                    if self._fails(error):
                        call_soon(functools.partial(end, str(error)))
                        return
                    continue
                if message is not None:
                    taken.clear()
                    call_soon(functools.partial(hand_over, message))
                    # One at a time: so nothing piles up here.
                    while not taken.wait(LISTEN_S) and not self._ends.is_set():
                        pass

        def hand_over(message: Any) -> None:
            try:
                if not self._ends.is_set():
                    self._take(message)
            finally:
                taken.set()

        def end(reason: str) -> None:
            if not self._ends.is_set():  # else it would be the end of the bus that came after
                self._lost(reason)

        taken = threading.Event()
        self._thread = threading.Thread(target=work, name="can", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the bus."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join(2 * LISTEN_S)
        try:
            self._bus.shutdown()
        except Exception as error:
            _log.warning("the CAN bus did not close in good order: %s", error)

    def _fails(self, error: Exception) -> bool:
        """Whether that is the end: the kernel says no, or nothing comes but failures."""
        self._failures += 1
        kernels = isinstance(error, OSError) or getattr(error, "error_code", None) is not None
        if kernels or self._failures > MOST_FAILURES:
            return True
        _log.warning("a frame was not received: %s", error)
        return False

    def _take(self, message: Any) -> bool:
        """Whether the bus is there still, after this of it."""
        self._failures = 0
        if message.is_error_frame:
            if self._socketcan and message.arbitration_id & ERR_BUSOFF:
                self._lost("bus off")
                return False
            return True
        remote = bool(message.is_remote_frame)
        try:
            frame = Frame(
                id=message.arbitration_id,
                data=b"" if remote else bytes(message.data),
                extended=bool(message.is_extended_id),
                fd=bool(message.is_fd),
                remote=remote,
                length=message.dlc if remote else -1,
            )
        except ValueError:
            return True  # a kind of frame that the driver could not have: CAN XL
        if not self._is_echo(frame):
            self._received(frame)
        return True

    def _is_echo(self, frame: Frame) -> bool:
        """Whether it is ours that comes back, once for each that was sent."""
        if not self._echoes:
            return False
        now = time.monotonic()
        for place, (sent, until) in enumerate(self._echoes):
            if sent == frame and now < until:
                del self._echoes[place]
                return True
        return False
