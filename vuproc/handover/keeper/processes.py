"""Processes of the keeper's: how they are tied to it, and how they end."""

import ctypes
import os
import signal
from collections.abc import Container

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of what a dead child leaves behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent has ended."""
    _prctl(_PR_SET_PDEATHSIG, number)


def kill_children(spared: Container[int]) -> bool:
    """SIGKILL every child but those; whether there are any, zombies among them.

    They are what a dead master has left: those that it had started are ours now.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            children = [int(word) for word in file.read().split()]
    except OSError:
        return False  # a kernel without that list; workers end by themselves, and are fenced
    for child in children:
        if child not in spared:
            try:
                os.kill(child, signal.SIGKILL)
            except PermissionError:
                pass  # a program of the device's that has become another user's
    return any(child not in spared for child in children)


def described(code: int) -> str:
    """How a process has ended, by its exit code, or minus the number of a signal."""
    try:
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:  # a real-time one, which has no name
        return f"killed by signal {-code}"


def _prctl(option: int, value: int) -> None:
    # Both options are older than any kernel that Python 3.11 runs on.
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
