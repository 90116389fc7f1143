"""A worker process as something that ends: by itself, killed, or not at all."""

from __future__ import annotations

import signal
from collections.abc import Callable

from vuproc import texts
from vuproc.fd import Fd
from vuproc.pool.forkserver import ForkedProcess, poll_until_readable
from vuproc.pool.hangup import has_hung_up, is_listener
from vuproc.sandbox.policy import DOCS
from vuproc.workers import stack

KILL_DEADLINE = 5.0
"""Seconds after SIGKILL by which the process must be gone; one stuck in the kernel is given up."""


class EndingProcess:
    """One that was forked for us. `stack_file` is what it may write its stack to; it stays the
    caller's.
    """

    def __init__(self, process: ForkedProcess, stack_file: Fd) -> None:
        self.pid, self.pidfd = process.pid, process.pidfd
        self.listener: Fd | None = None
        """That of its filter of system calls, once it is known."""
        self.on_listener: Callable[[], None] = _nothing
        """Called when it is."""
        self._has_stopped = False
        self._process = process
        self._stack = stack_file
        self._code: int | None = None
        self._on_close: list[Callable[[], None]] = []

    def on_close(self, action: Callable[[], None]) -> None:
        """Have `action` called once before its descriptors are closed, whose numbers others may get
        then.
        """
        self._on_close.append(action)

    def _before_close(self) -> None:
        actions, self._on_close = self._on_close, []
        for action in actions:
            action()

    def kill(self) -> bool:
        """SIGKILL the process and wait until it is gone; False if the kernel will not."""
        self.kill_at_once()
        return self.wait_end(KILL_DEADLINE)

    def take_listener(self, listener: Fd) -> None:
        """It has passed its filter's; the first counts."""
        if self.listener is not None or not is_listener(listener):
            listener.close()
            return
        self.listener = listener
        self.on_listener()

    @property
    def stopped(self) -> bool:
        """Whether it is known that no thread of it runs any more, or ever will; what it has open
        may be open still.
        """
        if not self._has_stopped and self.listener is not None:
            self._has_stopped = has_hung_up(self.listener)
        return self._has_stopped

    def _close_listener(self) -> None:
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.close()

    @property
    def closed(self) -> bool:
        """Whether its pidfd is."""
        return self.pidfd.closed

    def kill_at_once(self) -> None:
        """SIGKILL the process, if it is there; does not wait."""
        if self.closed:
            return
        try:
            signal.pidfd_send_signal(self.pidfd.fileno(), signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait_end(self, timeout: float) -> bool:
        """Wait until the process has ended; False after `timeout` seconds."""
        return poll_until_readable(self.pidfd.fileno(), timeout)

    def stack(self) -> str:
        """End it; what its Python code was doing, a line a call, the latest first. "" if it does
        not say, and then it may still be there.
        """
        return stack.of(self.pidfd, self._stack)

    def ending(self) -> str:
        """How the process ended, in words: the signal's name or the exit code."""
        code = self._exit_code()
        words = describe_exit(code)
        if code != -signal.SIGSYS:
            return words
        call = texts.line(stack.violation(self._stack)) or "a system call"
        return f"{words}: the sandbox has no {call}; see {DOCS}"

    def ended_by_signal(self) -> signal.Signals | None:
        """The signal that ended the process, or None."""
        code = self._exit_code()
        try:
            return None if code is None or code >= 0 else signal.Signals(-code)
        except ValueError:  # a real-time one, which has no name
            return None

    def ended_from_outside(self) -> bool:
        """It has ended by no doing of its own: by a SIGKILL, or together with its forkserver, and
        then nobody knows.
        """
        return self._exit_code() in (None, -signal.SIGKILL)

    def _exit_code(self) -> int | None:
        if self._code is None:
            self._code = self._process.exit_code(KILL_DEADLINE)
        return self._code


def _nothing() -> None:
    pass


def describe_exit(code: int | None) -> str:
    """An exit code in words; negative ones are minus the number of a signal."""
    if code is None:
        return "in a way that is not known"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
