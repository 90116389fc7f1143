"""The master is killed; its successor goes on with the same front-end."""

from __future__ import annotations

from tests.soak.fault import Fault
from tests.soak.stage import Stage


class MasterDeath(Fault):
    """With its workers, by SIGKILL; half of the time a message comes before the next is there."""

    name = "master death"
    full = 500
    spares_master = False

    def strike(self, stage: Stage) -> None:
        guest = stage.connection.guest
        stage.kill(stage.status().pid)
        if stage.chance.random() < 0.5:
            assert len(guest.config(size=8)) == 8
