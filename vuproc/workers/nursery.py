"""Ties the forkserver to its master: the first thing that the forkserver imports, for its effect.

When the master dies, in whatever way, the kernel kills the forkserver at once, and with it the
workers, which are tied to the forkserver in the same way. Without this the forkserver would live as
long as the last worker, and a worker inside a request would go on with guest memory that another
program may serve by then.
"""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; an exec of the parent is no end."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if "multiprocess.forkserver" in sys.orig_argv[-1]:
    # A master that is gone already asks for nothing, and then the forkserver ends by itself.
    die_with_parent()
