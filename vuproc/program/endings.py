"""Why a daemon has not started, or has ended, for the program that has it."""

from __future__ import annotations

import signal

from vuproc.errors import (
    ConfigError,
    ConfigErrors,
    DeviceRefused,
    HostRefused,
    SocketRefused,
    StartRefused,
)
from vuproc.program.messages import Refused


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
