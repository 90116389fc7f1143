"""Workers are killed: one, all at once, or with the standby that is to replace them."""

from __future__ import annotations

from tests.soak.fault import Fault
from tests.soak.stage import Stage

MASSACRE = 0.1
STANDBY = 0.1


class WorkerDeath(Fault):
    """By SIGKILL, at any instruction."""

    name = "worker death"
    full = 5000

    def strike(self, stage: Stage) -> None:
        status = stage.status()
        victims = [queue.pid for queue in status.queues if queue.pid is not None]
        if stage.chance.random() >= MASSACRE:
            victims = [stage.chance.choice(victims)] if victims else []
        if status.standby is not None and stage.chance.random() < STANDBY:
            victims.append(status.standby)
        for pid in victims:
            stage.kill(pid)
