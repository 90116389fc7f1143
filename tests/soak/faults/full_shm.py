"""/dev/shm has no byte left, while workers, connections or masters come that want some."""

from __future__ import annotations

from threading import Event

from tests.soak.fault import Fault
from tests.soak.room import SHM
from tests.soak.stage import Stage

FULL_S = 0.2
"""Seconds that a new master may look for room in vain: less than the keeper's patience."""


class FullShm(Fault):
    """Somebody needs shared memory and there is none."""

    name = "full /dev/shm"
    full = 60
    spares_master = False

    @classmethod
    def obstacle(cls, stage: Stage) -> str | None:
        return stage.room.without

    def strike(self, stage: Stage) -> None:
        who = stage.chance.choice(("worker", "front-end", "master"))
        # One that is starting after another fault would find no room, and nobody would make any.
        stage.status()
        with stage.room.full(SHM):
            if who == "worker":
                stage.kill(stage.chance.choice(stage.workers()))
                stage.progress()
            elif who == "front-end":
                stage.hang_up()
                stage.progress()
            else:
                stage.kill(stage.status().pid)
                Event().wait(FULL_S)
