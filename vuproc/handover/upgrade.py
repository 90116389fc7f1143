"""Becoming another program without losing the front-end: the process goes on with new code.

The new code is tried first, in a process of its own. Then this process replaces its program by
execve(2) and hands all descriptors on, as a service manager would after a death. The workers stay
and serve their rings until the new program is ready to take over.
"""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from vuproc import texts
from vuproc.fd import Fd, HasFileno
from vuproc.handover.keeper.descriptors import MAX_STORED
from vuproc.handover.keeper.descriptors import become as execute
from vuproc.handover.keeper.error_output import ErrorOutput

if TYPE_CHECKING:
    from vuproc.device_file.check import DeviceFile

log = logging.getLogger("vuproc.master")

CHECK_DEADLINE_S = 60.0
"""Seconds that the new code has to start and to read the device file."""
EXIT_NOT_EXECUTED = 70
"""Exit code when the new program could not be started after all: a supervisor starts another."""


class Again(Struct, frozen=True):
    """How this program was started: what it takes to do that again."""

    run: tuple[str, ...]
    """The command."""
    check: tuple[str, ...]
    """A command of the same program that checks its device file and ends with 0 if that is good."""
    load: Callable[[], DeviceFile]
    """Read the device file once more, with what the command line says over it; ConfigErrors."""


class Trial:
    """Runs the check command, and calls back when it has ended well. A chore of the master."""

    def __init__(
        self,
        command: tuple[str, ...],
        selector: selectors.BaseSelector,
        on_good: Callable[[], None],
        obstacle: Callable[[], str] = lambda: "",
    ) -> None:
        """`obstacle` says why it cannot be now; "" if it can."""
        self._command = command
        self._selector = selector
        self._on_good = on_good
        self._obstacle = obstacle
        self._process: subprocess.Popen[bytes] | None = None
        self._output: Fd | None = None
        self._pidfd: Fd | None = None
        self._until = 0.0
        self.state = ""
        """As `vuproc.ops.status.Status.upgrade`."""

    def start(self) -> None:
        """Begin, unless one is under way."""
        if self._process is not None:
            return
        if obstacle := self._obstacle():
            self._refuse(obstacle)
            return
        log.info("upgrade: trying the new program")
        self.state = "trying"
        try:
            output = Fd(os.memfd_create("vuproc-check"))
        except OSError as error:
            self._refuse(f"a file for what it says: {error.strerror}")
            return
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output.fileno(),
                stderr=output.fileno(),
            )
            self._pidfd = Fd(os.pidfd_open(self._process.pid))
        except OSError as error:
            self._refuse(f"{self._command[0]}: {error.strerror}")
            output.close()
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.wait()
            return
        self._output = output
        self._until = time.monotonic() + CHECK_DEADLINE_S
        self._selector.register(self._pidfd.fileno(), selectors.EVENT_READ, self._ended)

    def due(self) -> float | None:
        """Seconds until it has lasted too long; None once it has been killed for that."""
        if self._process is None or self._until == float("inf"):
            return None
        return max(0.0, self._until - time.monotonic())

    def tend(self) -> None:
        """Kill it if it has."""
        if self._process is not None and time.monotonic() >= self._until:
            self._process.kill()
            self._until = float("inf")

    def close(self) -> None:
        """Stop waiting for it."""
        if self._process is not None:
            self._process.kill()
            self._forget()

    def _ended(self) -> None:
        code, output = self._forget()
        obstacle = self._obstacle()
        if code == 0 and not obstacle:
            self._on_good()
            return
        if code == 0:
            self._refuse(obstacle)
            return
        lines = output.decode(errors="replace").strip().splitlines()
        self._refuse(lines[-1] if lines else f"the check ended with {code}")

    def _refuse(self, reason: str) -> None:
        log.error("upgrade refused: %s", reason)
        self.state = f"refused: {texts.line(reason)}"

    def _forget(self) -> tuple[int, bytes]:
        assert self._process is not None and self._pidfd is not None and self._output is not None
        self._selector.unregister(self._pidfd.fileno())
        code = self._process.wait()
        output = os.pread(self._output.fileno(), 1 << 16, 0)
        self._pidfd.close()
        self._output.close()
        self._process = self._pidfd = self._output = None
        return code, output


def become(
    command: tuple[str, ...],
    held: Mapping[str, HasFileno],
    more: Mapping[str, str],
    hold_signals: Callable[[], None],
) -> None:
    """Replace this program by `command`, which inherits `held` by name. Returns only if that is out
    of the question.

    `more` goes into its environment. `hold_signals` has signals wait, for without handlers they
    would end the new program before it can act on them.
    """
    if len(held) > MAX_STORED:
        log.error("upgrade refused: %d descriptors are more than can be handed over", len(held))
        return
    if not os.access(command[0], os.X_OK):
        log.error("upgrade refused: %s cannot be executed", command[0])
        return
    log.info("becoming the new program")
    hold_signals()
    try:
        stored = [(name, fd.fileno()) for name, fd in held.items()]
        execute(list(command), stored, {**os.environ, **more})
    except OSError as error:
        # The descriptors are in disorder by now, the log's among them.
        text = f"vuproc: ERROR: cannot become {command[0]}: {error.strerror}"
        ErrorOutput("vuproc: WARNING: ").write(text)
    os._exit(EXIT_NOT_EXECUTED)
