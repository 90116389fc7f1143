"""The daemons that a program has when it ends: they end in order, all at a time."""

from __future__ import annotations

import atexit
import os
import time
import weakref

from vuproc.program.running import Running

STOP_TIMEOUT_S = 10.0
"""Seconds that an end in order may take before the daemon's processes are killed."""

_to_stop: weakref.WeakSet[Running] = weakref.WeakSet()


def stop_at_exit(running: Running) -> None:
    """Have it stopped when the program ends, if it still runs then."""
    _to_stop.add(running)


def _stop_all() -> None:
    """The program ends: its daemons end in order, all at a time."""
    left = [each for each in _to_stop if each.owner == os.getpid() and not each.ended.is_set]
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for running in left:
        running.ask_end()
    for running in left:
        running.stop(max(0.0, deadline - time.monotonic()))


atexit.register(_stop_all)
