"""The I/O priority of a worker, ioprio_set(2), which the disk's scheduler may heed."""

from __future__ import annotations

import ctypes
import logging
import os
import platform

log = logging.getLogger("vuproc.worker")

_CALLS = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
_WHO_PROCESS = 1
_CLASSES = {"realtime": 1, "best-effort": 2, "idle": 3}
_CLASS_SHIFT = 13


def set_for_us(priority: str) -> None:
    """Take `CLASS` or `CLASS/LEVEL`, as the option `io_priority` has it; what cannot be had is a
    line in the log, and changes nothing.
    """
    kind, _, level = priority.partition("/")
    call = _CALLS.get(platform.machine())
    if call is None:
        log.warning("io_priority %s: not known on this kind of machine", priority)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    value = _CLASSES[kind] << _CLASS_SHIFT | int(level or 0)
    if libc.syscall(call, _WHO_PROCESS, 0, value) != 0:
        log.warning("io_priority %s: %s", priority, os.strerror(ctypes.get_errno()))
