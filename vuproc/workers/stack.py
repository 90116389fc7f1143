"""The Python stack of a worker that does not get on, asked for by a signal.

The interpreter's fault handler writes it, in C and without the GIL: also from an endless loop or a
call that blocks. The worker registers it first of all. It is the last that a worker does, for the
signal would wake it from whatever it waits for: once it has written, it is gone.
"""

from __future__ import annotations

import faulthandler
import os
import re
import select
import signal

from vuproc.fd import Fd
from vuproc.sandbox import kernel
from vuproc.spec import system_calls

SIGNAL = signal.SIGRTMAX
"""Has a worker write its stack and end. Not one that a device's own code is likely to use."""
PATIENCE_S = 0.25
"""Seconds a worker has to write it."""
MAX_BYTES = 32 * 1024
"""Bytes of it that are looked at."""
MAX_CALLS = 20
"""Calls that are shown."""

_VIOLATION = re.compile(r"^vuproc-system-call (\d{1,10})$", re.MULTILINE)
_CALL = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)


def make_file() -> Fd:
    """The file that a worker writes to. Raises OSError."""
    return Fd(os.memfd_create("vuproc-stack", os.MFD_CLOEXEC))


def offer(file: Fd) -> None:
    """In a worker: write the stack of this thread to `file` when it is asked for, and end."""
    # The handler before, which is called then, is the default one: it ends the process.
    faulthandler.register(SIGNAL, file=file.fileno(), all_threads=False, chain=True)


def offer_violations(file: Fd) -> None:
    """In a worker: if its filter of system calls ends it, write which call it was, and the stack of
    the thread that made it.
    """
    faulthandler.register(signal.SIGSYS, file=file.fileno(), all_threads=False, chain=True)
    kernel.report_violations(file.fileno())


def violation(file: Fd) -> str:
    """The call that has ended a worker, `NAME at FILE:LINE in FUNCTION`; "" if it says nothing.

    The worker has written it, which may say anything.
    """
    text = os.pread(file.fileno(), MAX_BYTES, 0).decode(errors="replace")
    found = _VIOLATION.search(text)
    if found is None:
        return ""
    name = system_calls.name_of(int(found[1]))
    calls = _calls(text[found.end() :])
    return f"{name} at {calls[0]}" if calls else name


def of(pidfd: Fd, file: Fd) -> str:
    """End the worker; what it was doing, `FILE:LINE in FUNCTION` a line, the latest call first.

    Calls of our own below the device's code are left out. "" if it has written nothing by
    `PATIENCE_S`: it may be inside the kernel, or only just starting.
    """
    try:
        signal.pidfd_send_signal(pidfd.fileno(), SIGNAL)
    except OSError:
        return ""
    poller = select.poll()
    poller.register(pidfd.fileno(), select.POLLIN)
    poller.poll(PATIENCE_S * 1000)
    text = os.pread(file.fileno(), MAX_BYTES, 0).decode(errors="replace")
    return "\n".join(_calls(text)[:MAX_CALLS])


def _calls(text: str) -> list[str]:
    found = _CALL.findall(text)
    ours = os.path.dirname(os.path.abspath(__file__))
    own = next((at for at, (file, _, _) in enumerate(found) if file.startswith(ours)), len(found))
    return [f"{file}:{line} in {name}" for file, line, name in found[: max(1, own)]]
