"""Has the program of an inquiry run while the master's loop goes on."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Callable

from msgspec import Struct

from vuproc.fd import Fd
from vuproc.inquiries import Answer, Inquiry

ANSWER_BYTES = 64 << 20
"""Most of what it says that is read: the manifest of a large image is some MiB."""

Then = Callable[[Answer], None]


class _Running(Struct):
    """The program, with files for what it says: a pipe would have to be read meanwhile."""

    process: subprocess.Popen[bytes]
    pidfd: Fd
    output: Fd
    error: Fd
    until: float
    then: Then
    in_time: bool = True


class Inquirer:
    """Runs one program at a time, and calls back with its answer. A part of a chore of the master.

    A program that takes too long is killed.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._running: _Running | None = None

    @property
    def busy(self) -> bool:
        """A program runs."""
        return self._running is not None

    def begin(self, inquiry: Inquiry, then: Then) -> None:
        """Start it, if none runs; `then` gets the answer, in another turn. Raises OSError."""
        assert self._running is None
        output = Fd(os.memfd_create("vuproc-answer", os.MFD_CLOEXEC))
        with output:
            error = Fd(os.memfd_create("vuproc-errors", os.MFD_CLOEXEC))
            with error:
                process = subprocess.Popen(
                    inquiry.command,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=output.fileno(),
                    stderr=error.fileno(),
                )
                try:
                    pidfd = Fd(os.pidfd_open(process.pid))
                except OSError:
                    process.kill()
                    process.wait()
                    raise
                until = time.monotonic() + inquiry.seconds
                held = Fd(output.take()), Fd(error.take())
                self._running = _Running(process, pidfd, *held, until, then)
        self._selector.register(pidfd.fileno(), selectors.EVENT_READ, self._ended)

    def due(self) -> float | None:
        """Seconds until it has lasted too long; None if none runs, or it was killed for that."""
        running = self._running
        if running is None or not running.in_time:
            return None
        return max(0.0, running.until - time.monotonic())

    def tend(self) -> None:
        """Kill it if it has."""
        running = self._running
        if running is not None and running.in_time and time.monotonic() >= running.until:
            running.in_time = False
            running.process.kill()

    def close(self) -> None:
        """End it; nobody is called."""
        if self._running is not None:
            self._running.process.kill()
            self._forget(self._running)

    def _ended(self) -> None:
        running = self._running
        assert running is not None
        running.then(self._forget(running))

    def _forget(self, running: _Running) -> Answer:
        self._running = None
        self._selector.unregister(running.pidfd.fileno())
        code = running.process.wait()
        said = [os.pread(fd.fileno(), ANSWER_BYTES, 0) for fd in (running.output, running.error)]
        for fd in running.pidfd, running.output, running.error:
            fd.close()
        return Answer(code if running.in_time else None, *said)
