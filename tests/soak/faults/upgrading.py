"""The program is replaced by a new one, to which it hands the session over."""

from __future__ import annotations

import signal

from tests.soak.fault import Fault
from tests.soak.stage import Stage, signal_to


class Upgrading(Fault):
    """By SIGUSR2 to the keeper."""

    name = "upgrade"
    full = 50
    spares_master = False

    def strike(self, stage: Stage) -> None:
        before = stage.status().started
        signal_to(stage.keeper, signal.SIGUSR2)
        stage.wait_for(lambda: stage.status().started != before or None, "new program")
