"""The process that serves a device for a test: a daemon's, or that of a command line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable

from vuproc.daemon import Daemon
from vuproc.errors import ConfigErrors, NotRunning, StartRefused
from vuproc.fd import Fd

START_TIMEOUT = 120.0
"""Seconds until the socket must be there. Importing the author's modules counts in, and so does
that the machine stands still for a while.
"""
EXIT_REFUSED = 2
"""The code of one that was refused before there was a process."""


class DaemonProcess:
    """The process of a daemon, as subprocess has it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.refusal: StartRefused | ConfigErrors | None = None
        try:
            daemon.start(START_TIMEOUT)
        except (StartRefused, ConfigErrors) as error:
            self.refusal = error

    @property
    def pid(self) -> int:
        """Its process id; 0 if it was refused before there was one."""
        return 0 if self.never_there else self.daemon.pid

    @property
    def never_there(self) -> bool:
        """Whether it was refused before a process was started for it."""
        return self.refusal is not None and not self._launched()

    def poll(self) -> int | None:
        """Its exit code; None if it has not ended."""
        return self._code(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        code = self._code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("the daemon", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it is there."""
        if self.daemon.running:
            # It may have ended, and the daemon not have heard of it yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _code(self, timeout: float | None) -> int | None:
        if self.never_there:
            return EXIT_REFUSED
        stopped = self.daemon.wait(timeout)
        return None if stopped is None else stopped.code

    def _launched(self) -> bool:
        try:
            return self.daemon.pid > 0
        except NotRunning:
            return False


def started(
    command: list[str] | Callable[[Fd], Daemon], output: Fd
) -> DaemonProcess | subprocess.Popen[bytes]:
    """A daemon that was started, if it could be; or the process of a command, as it begins."""
    if not isinstance(command, list):
        return DaemonProcess(command(output))
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output.fileno(),
        stderr=output.fileno(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
