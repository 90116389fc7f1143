"""Ties a process to its parent's life, in the kernel (prctl(2), PR_SET_PDEATHSIG).

The forkserver is tied to the master and each worker to the forkserver. When the master dies, in
whatever way, all of them are killed at once. Without this a worker inside a request would go on
with guest memory that another program may serve by then.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
# Looked up before there are forks, each of which would.
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def prctl(option: int, value: int) -> None:
    """prctl(2), for options that cannot fail."""
    _prctl(option, value, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; an exec of the parent is no end.

    `parent` is the parent's process id. If it has ended already, this process ends here.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it was quicker
