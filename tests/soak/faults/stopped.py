"""A process stops, as by a debugger or a host that swaps, and goes on or is replaced."""

from __future__ import annotations

import signal
from threading import Event

from tests.soak.fault import Fault
from tests.soak.stage import Stage, signal_to

SHORT_S = 0.1
"""Less than the watchdog's patience."""


class Stopped(Fault):
    """A worker until the watchdog has it replaced, or any process for a short time."""

    name = "stopped process"
    full = 200

    def strike(self, stage: Stage) -> None:
        if stage.chance.random() < 0.3:
            pid = stage.chance.choice(stage.workers())
            signal_to(pid, signal.SIGSTOP)
            # It is killed while it stands still.
            stage.wait_for(lambda: pid not in stage.workers() or None, "other worker")
            return
        pid = stage.chance.choice(stage.processes())
        signal_to(pid, signal.SIGSTOP)
        try:
            Event().wait(SHORT_S)
        finally:
            signal_to(pid, signal.SIGCONT)
