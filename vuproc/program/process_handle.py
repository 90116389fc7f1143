"""A process that may be signalled by any thread, and from a signal handler, until it is let go."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from vuproc.fd import Fd


class ProcessHandle:
    """Owns a pidfd: it goes on naming this process when its pid names another."""

    def __init__(self, pid: int) -> None:
        """OSError if there is no such process, or no descriptor for it."""
        self._fd = Fd(os.pidfd_open(pid))
        # Or the number could be another process's by the time that the signal is sent. A handler
        # comes on top of what its own thread does, and this lock lets that thread in again.
        self._lock = threading.RLock()

    def fileno(self) -> int:
        """The pidfd, for who closes it too. ValueError if it is closed."""
        return self._fd.fileno()

    def signal(self, number: signal.Signals) -> None:
        """Send it, unless the process has ended or was let go."""
        with self._lock, contextlib.suppress(ValueError, OSError):
            signal.pidfd_send_signal(self._fd.fileno(), number)

    def close(self) -> None:
        """Let it go. Waits for a signal that is on its way."""
        with self._lock:
            self._fd.close()
