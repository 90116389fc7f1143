"""What the service manager is told of a fleet: that all of it is up, and that it lives.

Each device tells its keeper the same of itself; this is the keeper's own end of sd_notify(3).
"""

import os
import socket
import time
from collections.abc import Callable

WATCHDOG_SHARE = 3
"""Signs of life within one watchdog interval."""


class Service:
    """The service manager, if there is one. Its variables are removed, as masters are not us."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        interval, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address[:1] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        meant = pid in ("", str(os.getpid())) and interval.isdecimal() and self._socket
        self._interval = int(interval) / 1e6 / WATCHDOG_SHARE if meant else 0.0
        self._alive_at = 0.0
        self._ready = False
        self._said = ""

    def due(self) -> float | None:
        """Seconds until the next sign of life."""
        return self._alive_at - time.monotonic() if self._interval else None

    def tell(self, summary: Callable[[], str], settled: Callable[[], bool]) -> None:
        """How we are in a line; `settled`: whatever is to start has started."""
        if self._socket is None:
            return
        if settled():
            if not self._ready:
                self._ready = True
                self._send("READY=1")
            line = summary()
            if line != self._said:
                self._said = line
                self._send(f"STATUS={line}")
        if self._interval and time.monotonic() >= self._alive_at:
            self._alive_at = time.monotonic() + self._interval
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """We are about to end."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Nobody is told any more."""
        if self._socket is not None:
            self._socket.close()

    def _send(self, text: str) -> None:
        if self._socket is not None:
            try:
                self._socket.sendto(text.encode(), socket.MSG_DONTWAIT, self._address)
            except OSError:
                pass  # nothing is worth waiting for here
