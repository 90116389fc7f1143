"""Why a daemon has not started, or has ended, for the program that has it."""

from __future__ import annotations

import os
import select
import signal
import subprocess

from vuproc.errors import (
    ConfigError,
    ConfigErrors,
    DeviceRefused,
    HostRefused,
    SocketRefused,
    StartRefused,
)
from vuproc.events import Stopped
from vuproc.fd import HasFileno
from vuproc.program.messages import Refused

UNKNOWN = 1
"""The exit code of a process whose own nobody could tell."""


def error_of(told: Refused) -> StartRefused | ConfigErrors:
    """What a start raises that the master has refused."""
    if told.whose == "file":
        return ConfigErrors(tuple(ConfigError(*error) for error in told.errors))
    kinds: dict[str, type[StartRefused]] = {
        "device": DeviceRefused,
        "socket": SocketRefused,
        "host": HostRefused,
    }
    return kinds.get(told.whose, StartRefused)(told.reason)


def ending_of(code: int) -> str:
    """The end of a process that did not say why, from its exit code; negative: by a signal."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time one, which has no name
        return f"its process was killed by signal {-code}"


def end_of(
    process: subprocess.Popen[bytes], pidfd: HasFileno, said: Stopped | None, timeout: float
) -> tuple[int, str]:
    """Why a process has ended, or does within `timeout` seconds: its exit code, and in words.

    `said` is what its master has said last.
    """
    code = _reaped(process, pidfd, timeout)
    if code is not None:
        return code, ending_of(code) if said is None else said.reason
    if said is not None:
        return said.code, said.reason
    return UNKNOWN, "its process has ended, and somebody else was told how"


def _reaped(process: subprocess.Popen[bytes], pidfd: HasFileno, timeout: float) -> int | None:
    """Its exit code, negative for a signal; None if the program has its children reaped by the
    kernel or by other code. (Popen takes that for an end in order.)
    """
    poller = select.poll()
    poller.register(pidfd.fileno(), select.POLLIN)
    if not poller.poll(timeout * 1000):
        return -signal.SIGKILL
    try:
        found = os.waitid(os.P_PIDFD, pidfd.fileno(), os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        found = None
    process.poll()
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
